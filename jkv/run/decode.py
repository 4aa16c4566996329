"""One run, end to end: check the configuration, open model and task, decode this host's share, close the run."""

import dataclasses
import functools
import pathlib
import tempfile

from rich.console import RenderableType

from jkv.config.decode import DecodeConfig
from jkv.distributed.hosts import Hosts, here, need_out
from jkv.grading import Grader
from jkv.grading.queue import GradingQueue
from jkv.run.closing import summary_table
from jkv.run.directory import RunDirectory
from jkv.run.host_meeting import Meeting
from jkv.run.host_shares import Share, Summarise, UnclosedRun, open_share
from jkv.run.limits import device_errors_as_user_errors
from jkv.run.opening import AtHand, Checked, Opened, check, open_run
from jkv.run.progress import LiveProgress
from jkv.run.record import Recorder, follow
from jkv.run.summary import Summary, summarise
from jkv.terminal import termination
from jkv.terminal.screen import Screen

# Seconds that an interrupted run waits for the grades of samples that are already decoded.
GRADES_WITHIN_S = 5.0


@dataclasses.dataclass(frozen=True)
class Display:
    """What a run shows besides its progress.

    Attributes:
        above: stands over the progress bar.
        screen: where one thought and the closing table are printed; None for neither.
    """

    above: RenderableType | None = None
    screen: Screen | None = None


NOTHING_AT_HAND, NO_DISPLAY = AtHand(), Display()


def run(
    config: DecodeConfig,
    at_hand: AtHand = NOTHING_AT_HAND,
    *,
    screen: Screen | None = None,
    grader: Grader | None = None,
) -> Summary | None:
    """Run a configuration from its start to its summary.

    Args:
        config: what to run.
        at_hand: what this process has loaded already.
        screen: where one thought and the closing table are printed; None for neither.
        grader: grades mathematical answers; by default the run starts one of its own.

    Returns:
        The summary, which is also in ``--out``. Of several hosts only the first returns it; the others return None once
        it is written.

    Raises:
        UserError: anything that a user can mend.
    """
    hosts = here()
    with tempfile.TemporaryDirectory() as scratch:
        out, meeting = pathlib.Path(config.out or scratch), None
        if hosts.count > 1:
            out = need_out(config.out)
            config = dataclasses.replace(config, quiet=config.quiet or not hosts.first)
            meeting = Meeting(hosts, out, [out], config)
        unclosed = decode_run(config, out, at_hand, Display(screen=screen), grader=grader, meeting=meeting)
        summary = unclosed.close()
        if meeting is not None:
            meeting.end()
        return summary


def decode_run(
    config: DecodeConfig,
    out: pathlib.Path,
    at_hand: AtHand = NOTHING_AT_HAND,
    display: Display = NO_DISPLAY,
    *,
    grader: Grader | None = None,
    meeting: Meeting | None = None,
) -> UnclosedRun:
    """Check, open and decode a run, or this host's share of it. Only closing it is left.

    Args:
        config: what to run.
        out: the run's directory; samples that are finished there do not run again.
        at_hand: what this process has loaded already.
        display: what is shown besides the progress.
        grader: grades mathematical answers; by default the run starts one of its own.
        meeting: where several hosts have met; None on a single host.

    Returns:
        The run, to be closed when every host's samples are there.

    Raises:
        UserError: anything that a user can mend.
    """
    checked = check(config, at_hand.loaded, Hosts() if meeting is None else meeting.hosts)
    opened = open_run(config, checked, at_hand)
    share = open_share(
        out, opened.identity, opened.requests, checked.hosts, meeting, trace=config.trace, quiet=config.quiet
    )
    try:
        recorder = _decode(config, checked, opened, share, grader, display)
    except BaseException:
        share.close_files()
        raise
    return share.decoded(_how_to_close(config, opened, recorder, display.screen))


def _decode(
    config: DecodeConfig, checked: Checked, opened: Opened, share: Share, grader: Grader | None, display: Display
) -> Recorder | None:
    """Decode the share's requests; each sample is written when it is graded.

    Returns:
        What has recorded the samples; None if there were none to write on this host.
    """
    facts = opened.facts
    live = LiveProgress(
        total=share.total, slots=checked.rows * opened.rule.budget, kv_bytes=facts.kv_bytes,
        kv_bytes_full=facts.kv_bytes_full, quiet=config.quiet, above=display.above,
    )  # fmt: skip
    if share.notice:
        live.console.print(share.notice, soft_wrap=True)
    last_line = functools.partial(_how_to_continue, config, checked.hosts, share)
    with termination.last_line(last_line), live, device_errors_as_user_errors(), GradingQueue(grader) as queue:
        live.sample_done(share.done)
        termination.reinstall_handler()
        if not share.requests:
            return None
        if share.directory is None:  # another host of the same replica writes
            follow(opened.engine, share.requests, trace=config.trace)
            return None
        recorder = Recorder(
            opened.engine, opened.problems, opened.loaded.tokenizer, share.directory, queue, trace=config.trace
        )
        recorder.decode(share.requests, live, patience=GRADES_WITHIN_S)
        return recorder


def _how_to_continue(config: DecodeConfig, hosts: Hosts, share: Share) -> str:
    """The last line of a run that is broken off."""
    if hosts.index != hosts.leader:
        return (
            f"{hosts} decoded together with host {hosts.leader}, which keeps the samples: "
            "run the same command to continue"
        )
    by_host = f" by {hosts}" if hosts.count > 1 else ""
    kept = f"and kept in {config.out}: run the same command to continue" if config.out else "but only --out keeps them"
    return f"{share.done} of {share.total} samples are finished{by_host} {kept}"


def _how_to_close(config: DecodeConfig, opened: Opened, recorder: Recorder | None, screen: Screen | None) -> Summarise:
    """What is left to do when all samples are in the run's directory: write the summary, and print on ``screen``.

    What is returned holds neither model nor engine unless there is a screen: in a sweep over several hosts it waits
    while the next model is loaded, which needs their memory.
    """
    policy, rule, facts = opened.policy, opened.rule, opened.facts
    recompiles = max(opened.engine.traces["decode"] - 1, 0)
    shown = None if screen is None else recorder

    def summarise_and_print(directory: RunDirectory) -> Summary:
        """Write and return the summary of the samples in ``directory``."""
        summary = summarise(config, policy, rule, directory.samples, directory.timings, facts, recompiles)
        directory.write_summary(summary)
        if screen is not None:
            if shown is not None:
                shown.show_thought(screen, directory.samples)
            screen.print(summary_table(summary))
        return summary

    return summarise_and_print
