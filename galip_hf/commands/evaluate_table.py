"""`galip-hf evaluate --data TABLE`: the subjects of a table, through a model."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model.errors import GalipError
from .evaluation_run import (
    Run,
    Windows,
    check_measures,
    model_identity,
    model_windows,
    parse_windows,
    shared_domains,
)

if TYPE_CHECKING:
    import numpy as np

    from ..clip.backbone import ClipBackbone
    from ..data.paired_subjects import TableSubjects
    from ..evaluation.panels import Panels
    from ..evaluation.unpaired import Acquired, Translated
    from ..model.intensity import IntensityNormalizer
    from ..model.unet import GalipGenerator

Translator = Callable[["np.ndarray", str, str], "np.ndarray"]


def run_table(arguments: argparse.Namespace, backbone: "ClipBackbone | None") -> Run:
    """The run; without pairs where no subject has two domains, or on request."""
    import torch

    from ..data.paired_subjects import TableSubjects
    from ..data.table import load_table
    from ..evaluation.manifest import table_manifest
    from ..evaluation.panels import Panels
    from ..inference.slices import precision_in_words
    from ..prepare.splits import split_hash_of_table

    table = load_table(arguments.data)
    if arguments.split not in table:
        raise GalipError(f"{arguments.data}: no split {arguments.split!r}; it has {', '.join(table)}")
    known = table[arguments.split].features["domain"].names
    device = arguments.device
    sources = [source for source in (arguments.model, arguments.compare) if source]
    loaded = {source: _load(source, device) for source in sources if source != arguments.model}
    if arguments.model:
        loaded = {arguments.model: _load(arguments.model, device, arguments.checkpoint), **loaded}
    models = {source: model for source, (model, _) in loaded.items()}
    domains, notes = shared_domains(known, models)
    subjects = TableSubjects(table[arguments.split], domains)
    windows = model_windows(models[sources[0]], notes) if sources else parse_windows(arguments.ct_window)
    windows = {domain: window for domain, window in windows.items() if domain in domains}
    check_measures(arguments.measures, windows)
    digest, kind = split_hash_of_table(arguments.data, subjects.names)
    details = {
        **model_identity(arguments.model, "model"),
        **(
            _checkpoint_identity(arguments.model, arguments.checkpoint)
            if arguments.checkpoint is not None
            else {}
        ),
        **model_identity(arguments.compare, "compared"),
        **({"precision": precision_in_words(torch.device(device), arguments.precision)} if sources else {}),
        "data": str(arguments.data),
        "split": arguments.split,
        "split_hash": digest,
        "split_hash_of": kind,
    }
    run = Run(
        title=f"{sources[0] if sources else 'Baselines'} on {arguments.data}, {arguments.split}",
        reports={},
        dataset=Path(arguments.data).resolve().name,
        panels=Panels(),
        split=arguments.split,
        manifest=table_manifest(subjects, str(arguments.data)),
        details=details,
        notes=notes,
    )
    if arguments.unpaired or not subjects.paired:
        _unpaired(run, arguments, table, subjects, domains, windows, loaded, backbone)
    else:
        _paired(run, arguments, table, subjects, domains, windows, models, backbone)
    return run


def _load(
    source: str, device: str, checkpoint: int | None = None
) -> "tuple[GalipGenerator, IntensityNormalizer]":
    """A model, or that of a checkpoint; then `source` is the output_dir of its training."""
    if checkpoint is not None:
        from ..model.intensity import IntensityNormalizer
        from ..training.checkpoint_model import load_checkpoint_generator

        generator = load_checkpoint_generator(source, checkpoint)
        return generator.to(device), IntensityNormalizer(generator.config.domains)
    from ..inference.pipeline import load_model

    model, processor = load_model(source)
    return model.to(device), processor


def _checkpoint_identity(run: str, step: int) -> dict[str, Any]:
    """Step of a checkpoint and SHA-256 of what was loaded from it."""
    from ..files import file_hash
    from ..training.checkpoint_model import checkpoint_directory

    path = checkpoint_directory(run, step)
    return {
        "checkpoint": step,
        "model_weights_sha256": file_hash(path / "ema.safetensors"),
        "model_config_sha256": file_hash(path / "state.json"),
    }


def _translator(model: "GalipGenerator", precision: str) -> Translator:
    from ..inference.slices import translate_slices

    return lambda volume, source, target: translate_slices(model, volume, target, precision=precision)


def _training_slices(table: Any, domains: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Slices of the training split by domain, and the domains that have none."""
    from ..data.paired_subjects import DomainSlices

    if "train" not in table:
        return {}, list(domains)
    training = {domain: DomainSlices(table["train"], domain) for domain in domains}
    lacking = [domain for domain, slices in training.items() if not len(slices)]
    return {domain: slices for domain, slices in training.items() if len(slices)}, lacking


# --- with pairs ---


def _paired(
    run: Run,
    arguments: argparse.Namespace,
    table: Any,
    subjects: "TableSubjects",
    domains: Sequence[str],
    windows: Windows,
    models: "Mapping[str, GalipGenerator]",
    backbone: "ClipBackbone | None",
) -> None:
    from ..data.paired_subjects import TableSubjects
    from ..evaluation.evaluate import evaluate
    from ..inference.slices import translate_slices

    if subjects.unmatched_slices:
        run.notes.append(
            f"{subjects.unmatched_slices} slices left out: another domain of the subject lacks them."
        )
    training, lacking = _training_slices(table, domains)
    if lacking:
        run.notes.append(
            "The table has no training slices" + (f" of {', '.join(lacking)}" if training else "") + ": no "
            "baseline 'mean', and histograms are matched to the target itself."
        )
    pairs: Sequence[Mapping[str, np.ndarray]] = ()
    if "train" in table:
        pairs = TableSubjects(table["train"], domains)
    sources = list(models)
    for number, source in enumerate(sources or ["baselines"]):
        run.reports[source] = evaluate(
            subjects,
            _translator(models[source], arguments.precision) if source in models else None,
            training if number == 0 and not lacking else None,
            domains=domains,
            ct_windows=windows,
            names=subjects.names,
            training_pairs=pairs,
            mask_of=subjects.mask,
            backbone=backbone,
            baselines=number == 0,
            measures=arguments.measures,
            panels=run.panels if number == 0 else None,
        )

    def predict(index: int, source: str, target: str, wanted: slice) -> "np.ndarray":
        volume = subjects[index][source][wanted]
        return translate_slices(models[sources[0]], volume, target, precision=arguments.precision)

    run.subjects, run.predict = subjects, predict if sources else None


# --- without pairs ---


def _unpaired(
    run: Run,
    arguments: argparse.Namespace,
    table: Any,
    subjects: "TableSubjects",
    domains: Sequence[str],
    windows: Windows,
    loaded: "Mapping[str, tuple[GalipGenerator, IntensityNormalizer]]",
    backbone: "ClipBackbone | None",
) -> None:
    from ..evaluation.unpaired import evaluate_unpaired

    if not arguments.model:
        raise GalipError(
            f"{arguments.data}: no subject of {arguments.split} has two domains, so there is no baseline "
            "to score either; give --model MODEL for a report without pairs"
        )
    if arguments.compare or arguments.measures:
        option = "--compare" if arguments.compare else "--measures"
        raise GalipError(
            f"{option}: needs subjects with two domains; leave it out for a report without pairs"
        )
    run.notes.append(
        "Pairs were set aside (--unpaired)."
        if subjects.paired
        else f"No subject of the split {arguments.split} has two domains: evaluated without pairs."
    )
    model, processor = loaded[arguments.model]
    training, lacking = _training_slices(table, domains)
    if lacking:
        run.notes.append(f"No training slices of {', '.join(lacking)}: no identity ratio towards them.")
    translate = _translator(model, arguments.precision)
    scans = sum(len(domains) for _ in range(len(subjects)))
    run.reports[arguments.model] = evaluate_unpaired(
        _scans(subjects, domains, windows, translate, run.panels),
        list(permutations(domains, 2)),
        ct_windows=windows,
        training_slices=training,
        statistics=processor.statistics,
        backbone=backbone,
        total=scans,
    )


def _scans(
    subjects: "TableSubjects",
    domains: Sequence[str],
    windows: Windows,
    translate: Translator,
    panels: "Panels",
) -> "Iterator[Acquired | Translated]":
    """Each subject's real scans and their translations to every other domain and back."""
    from ..evaluation.score_subject import body_of
    from ..evaluation.unpaired import Acquired, Translated

    for index, name in enumerate(subjects.names):
        given, subject = subjects.mask(index), subjects[index]
        for source, volume in subject.items():
            body = body_of({source: volume}, windows) if given is None else given
            if not body.any():
                continue
            yield Acquired(name, source, volume, body)
            for target in domains:
                if target == source:
                    continue
                fake = translate(volume.copy(), source, target)
                back = translate(fake.copy(), target, source)
                fullest = int(body.sum(axis=(1, 2)).argmax())
                panels.add(f"{source}->{target}", name, volume[fullest], fake[fullest], None)
                yield Translated(name, source, target, fake, body, volume, back)


__all__ = ["run_table"]
