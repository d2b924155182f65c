"""The job behind `handloop prior`: learn which poses are likely and show how the prior was chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from handloop.core.errors import InputError
from handloop.hand.load import load_hand
from handloop.priors.learn import LearnedPrior, learn_pose_prior
from handloop.priors.pose_sources import join, own_poses, read_poses
from handloop.priors.prior_file import save_prior

if TYPE_CHECKING:
    from handloop.commands import PriorCommand


def run_prior(command: PriorCommand) -> int:
    """Learn, write, print; returns the exit status."""
    console = Console(highlight=False)
    pair = load_hand(command.mano)
    side = None if command.hand is None else command.hand == "right"
    sets = [read_poses(path, pair, side, command.mean_relative) for path in command.inputs]
    if command.own_poses:
        sets.append(own_poses(pair.right))
    together = join(sets)
    for note in together.notes:
        console.print(note, markup=False, soft_wrap=True)
    name = ", ".join([*(path.stem for path in command.inputs), *["poses of the hand model"] * command.own_poses])
    with console.status(f"learning from {len(together.poses)} poses"):
        learned = learn_pose_prior(
            together.poses,
            components=None if command.components == "auto" else command.components,
            name=name,
            model_digest=together.model_digest,
            seed=command.seed,
        )
    show_candidates(console, learned)
    try:
        command.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {command.out.parent} cannot be made ({error.strerror}); name another.") from error
    save_prior(learned.prior, command.out)
    fits = f"hand model {learned.prior.model_digest} only" if learned.prior.model_digest else "any hand model"
    console.print(
        f"{len(together.poses)} poses -> {command.out}, {learned.chosen.kind}, for {fits}; "
        f"use it with: handloop fit ... --prior {command.out}",
        markup=False,
        soft_wrap=True,
    )
    return 0


def show_candidates(console: Console, learned: LearnedPrior) -> None:
    """A table of what was tried."""
    table = Table(title="how well each explains poses held out, nats per pose")
    table.add_column("prior")
    for column in ("log-likelihood", "gain over the first", "standard error"):
        table.add_column(column, justify="right")
    table.add_column("")
    for c in learned.candidates:
        mark = "chosen" if c is learned.chosen else ""
        table.add_row(c.kind, f"{c.held_out:.2f}", f"{c.gain:+.2f}", f"{c.gain_error:.2f}", mark)
    console.print(table)
