"""The job behind `handloop synth`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from handloop.core.errors import InputError
from handloop.hand.load import load_hand
from handloop.synth.picture import PictureOptions
from handloop.synth.produce import Order, produce
from handloop.synth.render import Renderer
from handloop.synth.sheet import write_sheet

if TYPE_CHECKING:
    from handloop.commands import SynthCommand

_ON_SHEET = 24


def run_synth(command: SynthCommand) -> int:
    """Do the whole job; returns the exit status."""
    if command.layout == "freihand" and command.hand not in (None, "right"):
        raise InputError(f"FreiHAND has right hands only; --hand {command.hand} does not go with --layout freihand.")
    hand = command.hand or ("right" if command.layout == "freihand" else "both")
    options = PictureOptions(
        command.size, command.seed, hand, command.backgrounds, command.occluders, command.forearm_in_mask
    )
    done = produce(Order(command.out, command.count, options, command.mano, command.layout, command.workers))
    kept = f", {done.kept:,} were there already" if done.kept else ""
    speed = f" ({done.rendered / done.seconds:.0f} a second)" if done.rendered and done.seconds > 0 else ""
    print(f"handloop: {done.rendered:,} pictures rendered in {done.seconds:.0f} s{speed}{kept}.", file=sys.stderr)
    if command.sheet:
        renderer = Renderer(load_hand(command.mano), options)
        write_sheet(command.out / "sheet.png", [renderer.render(k) for k in range(min(command.count, _ON_SHEET))])
        print(f"handloop: contact sheet {command.out / 'sheet.png'}", file=sys.stderr)
    return 0
