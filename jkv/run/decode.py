"""One run, end to end: check, open, decode, close."""

import dataclasses
import pathlib
import tempfile
from typing import Any

from rich.console import RenderableType

from jkv.config.decode import DecodeConfig
from jkv.distributed.hosts import Hosts, here, need_out
from jkv.grading import Grader
from jkv.grading.queue import Marking
from jkv.run.closing import summary_table
from jkv.run.directory import RunDirectory
from jkv.run.host_meeting import Meeting
from jkv.run.host_shares import Ending, Share, all_of, share_of
from jkv.run.limits import mendable
from jkv.run.opening import AtHand, Checked, Opened, check, open_run
from jkv.run.progress import LiveProgress
from jkv.run.record import Recorder, follow
from jkv.run.summary import summarise
from jkv.terminal import termination
from jkv.terminal.screen import Screen

# Seconds that a run which is broken off waits for the grades of samples that are finished.
GRADES_WITHIN_S = 5.0


@dataclasses.dataclass(frozen=True)
class Display:
    """What a run shows beside its progress.

    Attributes:
        above: stands over the progress bar.
        closing: where one thought and the closing table are printed; None: nowhere.
    """

    above: RenderableType | None = None
    closing: Screen | None = None


NOTHING, NO_DISPLAY = AtHand(), Display()


def run(
    config: DecodeConfig,
    at_hand: AtHand = NOTHING,
    *,
    closing: Screen | None = None,
    grader: Grader | None = None,
) -> dict[str, Any] | None:
    """Run a configuration.

    Args:
        config: what to run.
        at_hand: what an earlier run of this process has already.
        closing: where one thought and the closing table are printed; None: nowhere.
        grader: for mathematics; one of the run's own unless given.

    Returns:
        The summary, which is also in ``--out``. Of several hosts the first returns it; the others return None when it
        is written.

    Raises:
        UserError: whatever a user can mend.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if (hosts := here()).count == 1:
            out = pathlib.Path(config.out or scratch)
            return start(config, out, at_hand, Display(closing=closing), grader=grader).summary()
        out = need_out(config.out)
        config = dataclasses.replace(config, quiet=config.quiet or not hosts.first)
        meeting = Meeting(hosts, out, [out], config)
        summary = start(config, out, at_hand, Display(closing=closing), grader=grader, meeting=meeting).summary()
        meeting.end()
        return summary


def start(
    config: DecodeConfig,
    out: pathlib.Path,
    at_hand: AtHand = NOTHING,
    display: Display = NO_DISPLAY,
    *,
    grader: Grader | None = None,
    meeting: Meeting | None = None,
) -> Ending:
    """Decode a run's samples, or this host's share of them, into ``out``: all but summing up.

    Args:
        config: what to run.
        out: the run's directory; what is finished there is not run again.
        at_hand: what an earlier run of this process has already.
        display: what is shown beside the progress.
        grader: for mathematics; one of the run's own unless given.
        meeting: of several hosts.

    Returns:
        The end of the run: its summary is made when every host's samples are there.

    Raises:
        UserError: whatever a user can mend.
    """
    checked = check(config, at_hand.loaded, Hosts() if meeting is None else meeting.hosts)
    opened = open_run(config, checked, at_hand)
    shown: list[Recorder] = []
    share = _open_share(config, out, checked, opened, meeting, shown, display)
    try:
        _decode(config, share, checked, opened, grader, shown, display)
    except BaseException:
        share.close()
        raise
    return share.decoded()


def _open_share(
    config: DecodeConfig, out: pathlib.Path, checked: Checked, opened: Opened, meeting: Meeting | None,
    shown: list[Recorder], display: Display,
) -> Share:  # fmt: skip
    """This host's part of the run, with its directory open."""

    def sum_up(directory: RunDirectory) -> dict[str, Any]:
        recompiles = max(opened.engine.traces["decode"] - 1, 0)
        summary = summarise(
            config, opened.policy, opened.rule, directory.samples, directory.timings, opened.facts, recompiles
        )
        directory.write_summary(summary)
        if display.closing is not None:
            for recorder in shown:
                recorder.show_thought(display.closing, directory.samples)
            display.closing.print(summary_table(summary))
        return summary

    if meeting is None:
        return all_of(out, opened.identity, opened.requests, sum_up, trace=config.trace)
    return share_of(
        meeting, checked.hosts, out, opened.identity, opened.requests, sum_up, trace=config.trace, quiet=config.quiet
    )


def _decode(
    config: DecodeConfig, share: Share, checked: Checked, opened: Opened, grader: Grader | None,
    shown: list[Recorder], display: Display,
) -> None:  # fmt: skip
    """Decode the share's requests; each sample is graded and written as it ends."""
    facts, hosts = opened.facts, checked.hosts
    live = LiveProgress(
        total=share.total, slots=checked.rows * opened.rule.budget, kv_bytes=facts.kv_bytes,
        kv_bytes_full=facts.kv_bytes_full, quiet=config.quiet, above=display.above,
    )  # fmt: skip
    if share.notice:
        live.console.print(share.notice, soft_wrap=True)

    def so_far() -> str:
        if hosts.index != hosts.leader:
            return f"{hosts} helped host {hosts.leader}, which keeps samples: run the same command to continue"
        of_host = f" by {hosts}" if hosts.count > 1 else ""
        kept = (
            f"and kept in {config.out}: run the same command to continue" if config.out else "but only --out keeps them"
        )
        return f"{share.done} of {share.total} samples are finished{of_host} {kept}"

    with termination.saying(so_far), live, mendable(), Marking(grader) as marking:
        live.sample_done(share.done)
        termination.renew()
        if not share.requests:
            return
        if share.directory is None:  # another host of this replica writes
            follow(opened.engine, share.requests, trace=config.trace)
            return
        recorder = Recorder(
            opened.engine, opened.problems, opened.loaded.tokenizer, share.directory, marking, trace=config.trace
        )
        recorder.decode(share.requests, live, patience=GRADES_WITHIN_S)
        shown.append(recorder)
