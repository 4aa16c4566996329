"""What is read off a compiled program's text: copies that are there are found, buffers that stay are not."""

import pytest

from jkv.planning import hlo

PROGRAM = """\
HloModule jit_run, input_output_alias={ {0}: (1, {}, may-alias), {1}: (2, {}, may-alias) }, entry_computation_layout={}

%fused_in_place (p.0: bf16[4,2,64,16], p.1: bf16[4,2,1,16]) -> bf16[4,2,64,16] {
  %p.0 = bf16[4,2,64,16]{3,2,1,0} parameter(0)
  %p.1 = bf16[4,2,1,16]{3,2,1,0} parameter(1)
  %zero = s32[] constant(0)
  ROOT %dus.1 = bf16[4,2,64,16]{3,2,1,0} dynamic-update-slice(%p.0, %p.1, %zero, %zero, %zero, %zero)
}

%fused_anew (p.2: bf16[4,2,64,16]) -> bf16[4,2,64,16] {
  %p.2 = bf16[4,2,64,16]{3,2,1,0} parameter(0)
  ROOT %copy.9 = bf16[4,2,64,16]{2,3,1,0} copy(%p.2)
}

%fused_small (p.3: s32[]) -> bf16[4,2,1,16] {
  %p.3 = s32[] parameter(0)
  ROOT %b = bf16[4,2,1,16]{3,2,1,0} broadcast(%p.3), dimensions={}
}

%body (state: (bf16[4,2,64,16], s32[])) -> (bf16[4,2,64,16], s32[]) {
  %state = (bf16[4,2,64,16]{3,2,1,0}, s32[]) parameter(0)
  %gte.1 = bf16[4,2,64,16]{3,2,1,0} get-tuple-element(%state), index=0
  %gte.2 = s32[] get-tuple-element(%state), index=1
  %new = bf16[4,2,1,16]{3,2,1,0} fusion(%gte.2), kind=kLoop, calls=%fused_small
  %kept = bf16[4,2,64,16]{3,2,1,0} fusion(%gte.1, %new), kind=kLoop, calls=%fused_in_place
  %decode_attention_tpu.3 = (bf16[4,8,16]{2,1,0}, bf16[4,2,64,16]{3,2,1,0}) KERNEL
  %sum = f32[4,512]{1,0} all-reduce(%logits), replica_groups={{0,1}}, to_apply=%add
  %gathered = f32[4,20]{1,0} all-gather(%best), dimensions={1}
  %other = bf16[4,2,16]{2,1,0} fusion(%kept), kind=kLoop, calls=%fused_anew
  HERE
  ROOT %out = (bf16[4,2,64,16]{3,2,1,0}, s32[]) tuple(%kept, %gte.2)
}
"""
KERNEL = 'custom-call(%kept), custom_call_target="tpu_custom_call", output_to_operand_aliasing={{1}: (0, {})}'
PROGRAM = PROGRAM.replace("KERNEL", KERNEL)
SHAPE = (4, 2, 64, 16)


def test_a_buffer_that_stays_is_no_copy():
    assert hlo.kv_copies(PROGRAM, SHAPE) == []


@pytest.mark.parametrize(
    "line",
    [
        "%bad = bf16[4,2,64,16]{2,3,1,0} copy(%kept)",
        "%bad = bf16[8,64,16]{2,1,0} copy(%flat)",
        "%bad = bf16[4,64,2,16]{3,2,1,0} transpose(%kept), dimensions={0,2,1,3}",
        "%bad = (bf16[4,2,64,16]{3,2,1,0}, bf16[4,2,64,16]{3,2,1,0:S(1)}, u32[]) copy-start(%kept)",
        "%bad = bf16[4,2,64,16]{3,2,1,0} fusion(%kept), kind=kLoop, calls=%fused_anew",
        "%bad = f32[4,2,64,16]{3,2,1,0} convert(%kept)",
        "%bad = bf16[8,2,64,16]{3,2,1,0} all-gather(%kept), dimensions={0}",
        '%bad = bf16[4,2,64,16]{3,2,1,0} custom-call(%kept), custom_call_target="tpu_custom_call"',
        "%bad = bf16[4,2,64,16]{3,2,1,0} select(%flag, %kept, %kept)",
    ],
)
def test_what_makes_another_buffer_is_found(line):
    found = hlo.kv_copies(PROGRAM.replace("HERE", line), SHAPE)
    assert len(found) == 1
    assert found[0].endswith(" bad")


def test_collectives_kernels_and_aliases():
    assert hlo.collectives(PROGRAM) == {
        "all-gather": {"count": 1, "largest_bytes": 320},
        "all-reduce": {"count": 1, "largest_bytes": 8192},
    }
    assert hlo.kernels(PROGRAM) == {"decode_attention_tpu": 1}
    assert hlo.aliased(PROGRAM) == 2
