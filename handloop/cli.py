"""The command line: one program, verbs; each verb is a dataclass whose fields are its flags.

Only light imports at the top: `handloop --help` must not wait for torch.
"""

from __future__ import annotations

import sys

import tyro

from handloop._version import __version__
from handloop.commands import (
    DoctorCommand,
    EvalCommand,
    ExportCommand,
    FitCommand,
    KeypointCommand,
    LayoutCommand,
    LimitsCommand,
    PredictCommand,
    PriorCommand,
    SynthCommand,
    VersionCommand,
)
from handloop.train_commands import (
    CacheCommand,
    CacheExport,
    CacheImport,
    CacheInfo,
    CacheMerge,
    CacheVerify,
    TrainCommand,
    TrainImage,
    TrainLifter,
    TrainLoop,
    checkpoint_of,
)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 all fitted, 1 something failed, 2 wrong usage)."""
    command = tyro.extras.subcommand_cli_from_dict(
        {
            "fit": FitCommand,
            "predict": PredictCommand,
            "train": TrainCommand,
            "limits": LimitsCommand,
            "eval": EvalCommand,
            "export": ExportCommand,
            "layout": LayoutCommand,
            "prior": PriorCommand,
            "cache": CacheCommand,
            "synth": SynthCommand,
            "doctor": DoctorCommand,
            "version": VersionCommand,
        },
        prog="handloop",
        description="Fit MANO hands to 2D keypoints.",
        args=argv,
    )
    if isinstance(command, VersionCommand):
        print(f"handloop {__version__}")
        return 0
    from handloop.core.errors import HandloopError

    try:
        if isinstance(command, LayoutCommand):
            from handloop.layout_job import run_layout

            return run_layout(command)
        if isinstance(command, PriorCommand):
            from handloop.prior_job import run_prior

            return run_prior(command)
        if isinstance(command, CacheCommand):
            return _run_cache(command.action)
        if isinstance(command, SynthCommand):
            from handloop.synth_job import run_synth

            return run_synth(command)
        if isinstance(command, TrainCommand):
            return _run_training(command.action)
        if isinstance(command, DoctorCommand):
            from handloop.doctor import run_doctor

            return run_doctor(command.mano)
        if isinstance(command, EvalCommand):
            from handloop.evaluation_job import run_eval

            return run_eval(command)
        if isinstance(command, ExportCommand):
            from handloop.evaluation_job import run_export

            return run_export(command)
        if isinstance(command, LimitsCommand):
            from handloop.limits import run_limits

            return run_limits(command)
        from handloop.job import run_fit, run_predict

        if isinstance(command, PredictCommand):
            return run_predict(command, command.weights, command.boxes, command.refine)
        if command.engine == "ray":
            from handloop.bulk.job import run_bulk

            return run_bulk(command)
        return run_fit(command, command.start)
    except HandloopError as error:
        print(f"handloop: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"handloop: {error.filename or 'a file'} cannot be used ({error.strerror or error}).", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = isinstance(command, KeypointCommand) and (command.out / "parts").is_dir()
        kept |= isinstance(command, TrainCommand) and checkpoint_of(command.action).is_file()
        print(
            f"handloop: interrupted{'; what was done is kept, go on with --resume' if kept else ''}.", file=sys.stderr
        )
        return 130


def _run_training(action: TrainLifter | TrainLoop | TrainImage) -> int:
    if isinstance(action, TrainImage):
        from handloop.train_image_job import run_train_image

        return run_train_image(action)
    from handloop.train_job import run_train_lifter, run_train_loop

    return run_train_lifter(action) if isinstance(action, TrainLifter) else run_train_loop(action)


def _run_cache(action: CacheInfo | CacheExport | CacheImport | CacheMerge | CacheVerify) -> int:
    from handloop import cache_job

    if isinstance(action, CacheInfo):
        return cache_job.run_info(action)
    if isinstance(action, CacheExport):
        return cache_job.run_export(action)
    if isinstance(action, CacheImport):
        return cache_job.run_import(action)
    if isinstance(action, CacheMerge):
        return cache_job.run_merge(action)
    return cache_job.run_verify(action)


if __name__ == "__main__":
    sys.exit(main())
