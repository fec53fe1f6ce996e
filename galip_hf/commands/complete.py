"""`galip-hf complete`: fills the contrasts that cases of a data set lack, and lists what is synthetic."""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import atomic_write, files_below
from ..model.errors import GalipError
from ..version import DISCLAIMER, __version__
from .bids_plan import bids_fields
from .options import add_loaded_model, load_pipeline

if TYPE_CHECKING:
    from ..data.cases import Case
    from ..inference.pipeline import GalipPipeline
    from ..inference.translation import Translation

PATTERNS = ("nnunet", "brats", "bids")
LIST_FILE = "synthetic.jsonl"


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "complete", help="fill the missing contrasts of an nnU-Net, BraTS or BIDS data set"
    )
    parser.add_argument("folder", help="the data set")
    add_loaded_model(parser)
    parser.add_argument(
        "--pattern",
        required=True,
        choices=PATTERNS,
        help="nnunet: CASE_0000.nii.gz; brats: CASE-t1n.nii.gz or CASE_t1.nii.gz; bids: sub-01_T1w.nii.gz",
    )
    parser.add_argument(
        "--channels",
        metavar="DOMAIN=NAME,…",
        help="what every case shall have: T1=0000,T2=0001 (nnunet), T1=t1n,T2=t2w (brats), T1,T2 (bids); "
        "default: the channels that dataset.json or the pattern names and the model knows",
    )
    parser.add_argument(
        "--from",
        dest="sources",
        metavar="DOMAIN[,DOMAIN]",
        help="translate from the first of these that a case has (default: from the one with the highest PSNR "
        "in the model's report)",
    )
    parser.add_argument("--output", required=True, help="folder to write the completed data set to")
    parser.add_argument(
        "--skip-existing", action="store_true", help="continue in an output folder that is there already"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be made, and stop")
    parser.add_argument("--batch-size", type=int, default=4, help="slices translated at once (default: 4)")
    parser.set_defaults(run=_complete)


def _complete(arguments: argparse.Namespace) -> int:
    folder, output = Path(arguments.folder), Path(arguments.output)
    _check_folders(folder, output, arguments)
    pipeline = load_pipeline(arguments)
    channels = _channels(arguments, folder, pipeline.config.domain_names)
    cases = _cases(arguments.pattern, folder, channels)
    order = SourceOrder.of(arguments, pipeline.config.domain_names)
    plan = [(case, order.by_source(case)) for case in cases]
    if arguments.dry_run:
        for case, targets in plan:
            for source, names in targets.items():
                print(f"{case.name}: {', '.join(names)} from {source}")
        print(f"dry run: nothing was written; {sum(len(case.missing) for case in cases)} files to make")
        return 0
    output.mkdir(parents=True, exist_ok=True)
    if arguments.pattern != "bids":
        _copy_others(folder, output, arguments.pattern, channels)
    run = _Run(pipeline, output, arguments)
    failures = run.complete(plan)
    if arguments.pattern == "bids":
        from ..data.bids import write_dataset_files

        write_dataset_files(output, folder, pipeline.name, [LIST_FILE])
    return _summary(run, cases, failures)


def _check_folders(folder: Path, output: Path, arguments: argparse.Namespace) -> None:
    if not folder.is_dir():
        raise GalipError(f"{folder}: no such folder; expected a data set")
    if arguments.batch_size < 1:
        raise GalipError(f"--batch-size is {arguments.batch_size}; expected 1 or more")
    inside = folder.resolve() in (output.resolve(), *output.resolve().parents)
    if arguments.pattern == "bids":
        from ..data.bids import check_derivative

        check_derivative(output, folder)
    elif inside:
        raise GalipError(f"--output {output}: lies inside the data set {folder}; give a folder outside it")
    if output.is_dir() and any(output.iterdir()):
        if not arguments.skip_existing:
            raise GalipError(
                f"--output {output}: is not empty; give another folder, or --skip-existing to continue in it"
            )
    elif output.exists() and not output.is_dir():
        raise GalipError(f"--output {output}: is a file; give a folder")


def _channels(arguments: argparse.Namespace, folder: Path, domains: Sequence[str]) -> dict[str, str]:
    """Domain -> the name of its channel in the pattern; for BIDS the domain again."""
    from ..data.cases import brats_channels, nnunet_channels
    from ..data.contrasts import contrast_of

    pattern = arguments.pattern
    if arguments.channels is None:
        if pattern == "nnunet":
            return nnunet_channels(folder, domains)
        if pattern == "brats":
            return brats_channels(folder, domains)
        return {domain: domain for domain in domains if contrast_of(domain) not in (None, "CT")}
    channels: dict[str, str] = {}
    for part in arguments.channels.split(","):
        domain, _, name = (text.strip() for text in part.partition("="))
        name = name or (domain if pattern == "bids" else "")
        wrong = (pattern == "nnunet" and not (len(name) == 4 and name.isdigit())) or not name
        if wrong or domain in channels or name in channels.values():
            example = {"nnunet": "T1=0000", "brats": "T1=t1n", "bids": "T1"}[pattern]
            raise GalipError(f"--channels {part}: expected {example}, each domain and each name once")
        if domain not in domains:
            raise GalipError(
                f"--channels {part}: the model has no domain {domain}; it has {', '.join(domains)}"
            )
        channels[domain] = name
    return channels


def _cases(pattern: str, folder: Path, channels: Mapping[str, str]) -> "list[Case]":
    from ..data.cases import bids_cases, brats_cases, nnunet_cases

    if pattern == "bids":
        return bids_cases(folder, list(channels))
    return (nnunet_cases if pattern == "nnunet" else brats_cases)(folder, channels)


class SourceOrder:
    """Which of the contrasts that a case has to translate from.

    Args:
        preferred: domains in the order of preference; empty: by the report.
        psnr: (source, target) -> PSNR in dB in the model's report (protocol `fixed`, inside the body).
    """

    def __init__(self, preferred: Sequence[str], psnr: Mapping[tuple[str, str], float]) -> None:
        self._preferred, self._psnr = preferred, psnr

    @classmethod
    def of(cls, arguments: argparse.Namespace, domains: Sequence[str]) -> "SourceOrder":
        """From `--from`, else from the report.json beside the model's weights.

        Raises:
            GalipError: `--from` names a domain that the model does not have.
        """
        if arguments.sources is None:
            return cls((), _reported_psnr(arguments.model))
        preferred = [name.strip() for name in arguments.sources.split(",")]
        for name in preferred:
            if name not in domains:
                raise GalipError(f"--from {name}: the model has no such domain; it has {', '.join(domains)}")
        return cls(preferred, {})

    def by_source(self, case: "Case") -> dict[str, list[str]]:
        """Source -> the missing domains of a case to make from it.

        Raises:
            GalipError: several sources are there and nothing says which is best; or none of `--from` is.
        """
        chosen: dict[str, list[str]] = {}
        for target in case.missing:
            chosen.setdefault(self._source(case, target), []).append(target)
        return chosen

    def _source(self, case: "Case", target: str) -> str:
        if self._preferred:
            for name in self._preferred:
                if name in case.present:
                    return name
            raise GalipError(
                f"{case.name}: has {', '.join(case.present)}, and none of --from "
                f"{','.join(self._preferred)}; name another"
            )
        if len(case.present) == 1:
            return next(iter(case.present))
        measured = {
            source: self._psnr[source, target] for source in case.present if (source, target) in self._psnr
        }
        if not measured:
            raise GalipError(
                f"{case.name}: {target} could be made from {' or '.join(case.present)}, and the model has no "
                "report.json that measures them; give --from"
            )
        return max(measured, key=lambda source: measured[source])


def _reported_psnr(model: str) -> dict[tuple[str, str], float]:
    from ..files import read_json
    from ..hub.model_directory import REPORT
    from ..hub.pull import resolve_model

    path = resolve_model(model) / REPORT
    if not path.is_file():
        return {}
    try:
        directions = read_json(path)["protocols"]["fixed"]["masked"]["directions"]
        return {tuple(name.split("->")): float(row["psnr"]) for name, row in directions.items()}
    except (KeyError, TypeError, AttributeError, ValueError):
        raise GalipError(
            f"{path}: holds no PSNR by direction (protocols.fixed.masked.directions); give --from"
        ) from None


def _copy_others(folder: Path, output: Path, pattern: str, channels: Mapping[str, str]) -> None:
    """Copy every file of the data set that is not there yet; nnU-Net's dataset.json gets all channels."""
    from ..data.cases import DATASET_FILE, completed_dataset
    from ..files import write_report

    for path in files_below(folder):
        copy = output / path.relative_to(folder)
        if copy.exists():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(copy) as temporary:
            shutil.copyfile(path, temporary)
    dataset = completed_dataset(folder, channels) if pattern == "nnunet" else None
    if dataset is not None:
        write_report(dataset, output / DATASET_FILE)


class _Run:
    """Makes the missing files, and notes each in the list as soon as it is there."""

    def __init__(self, pipeline: "GalipPipeline", output: Path, arguments: argparse.Namespace) -> None:
        self._pipeline, self._output, self._batch_size = pipeline, output, arguments.batch_size
        self._folder = Path(arguments.folder)
        self._bids = arguments.pattern == "bids"
        self.list = output / LIST_FILE
        self.made = 0
        self.warned: list[str] = []

    def complete(self, plan: "Sequence[tuple[Case, dict[str, list[str]]]]") -> list[str]:
        """Every case, going on after failures; returns what failed."""
        from tqdm.auto import tqdm

        done, failures = self._listed(), []
        for case, targets in tqdm(plan, unit="case", desc="cases", disable=None):
            for source, names in targets.items():
                todo = [name for name in names if case.missing[name].as_posix() not in done]
                try:
                    self._translate(case, source, todo)
                except (GalipError, OSError, MemoryError, RuntimeError) as error:
                    failures.append(f"{case.name}: {' '.join(str(error).split())}")
        return failures

    def _listed(self) -> set[str]:
        """Files that an earlier run made: in the list, and there."""
        if not self.list.is_file():
            return set()
        text = self.list.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a killed run may have left half a line
        try:
            files = {json.loads(line)["file"] for line in whole.splitlines()}
        except (ValueError, KeyError, TypeError):
            raise GalipError(
                f"{self.list}: a line of it is not of this command's making; give another --output"
            ) from None
        if whole != text:
            with atomic_write(self.list) as temporary:
                temporary.write_text(whole, encoding="utf-8")
        return {file for file in files if (self._output / file).is_file()}

    def _translate(self, case: "Case", source: str, targets: list[str]) -> None:
        from ..data.scans import read_scan

        if not targets:
            return
        volumes = read_scan(case.present[source])
        if len(volumes) != 1:
            raise GalipError(f"{case.present[source]}: holds {len(volumes)} volumes; expected one")
        translations = self._pipeline(volumes[0], targets, source, batch_size=self._batch_size)
        for target, translation in zip(targets, translations, strict=True):
            self._write(case, source, target, translation)

    def _write(self, case: "Case", source: str, target: str, translation: "Translation") -> None:
        from ..data.scans import write_scan
        from ..inference.translation import save_translations

        path = self._output / case.missing[target]
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._bids:
            translation.report.update(bids_fields(case.scans[source], translation))
            save_translations([translation], path, overwrite=True)
        else:
            write_scan(translation.volume, path, overwrite=True)
        entry = {
            "file": case.missing[target].as_posix(),
            "case": case.name,
            "source_file": case.present[source].relative_to(self._folder).as_posix(),
            **translation.report,
            "galip_hf": __version__,
            "note": DISCLAIMER,
        }
        with open(self.list, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry, allow_nan=False) + "\n")
        self.made += 1
        self.warned += [f"{path}: {warning}" for warning in translation.warnings]


def _summary(run: _Run, cases: "Sequence[Case]", failures: Sequence[str]) -> int:
    for warning in run.warned:
        print(f"warning: {warning}")
    complete = sum(not case.missing for case in cases)
    print(f"{len(cases)} cases, {complete} of them complete already; {run.made} files made")
    if run.list.is_file():
        print(f"synthetic files: {run.list}")
    if failures:
        print(f"{len(failures)} failed:")
        for failure in failures:
            print(f"  {failure}")
    print(f"{DISCLAIMER.capitalize()}.")
    return 1 if failures else 0


__all__ = ["SourceOrder", "add_parser"]
