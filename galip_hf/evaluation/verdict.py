"""What an evaluation comes to, in one coloured line, and what a reader should not overlook."""

from collections.abc import Mapping, Sequence
from typing import Any

from .significance import spread

CANDIDATES = {
    "model": "model",
    "copy": "source copied",
    "histogram": "histogram matched",
    "mean": "mean slice",
    "lookup": "lookup table",
}
# Mean change of a translation as a part of what matching the histogram would change; below it the translator
# all but hands its source back.
COLLAPSE_RATIO = 0.5
FEWEST_SUBJECTS = 6  # below it no paired test over subjects can reach 5 %
TRUSTED_ACCURACY = 0.8  # on real slices; a classifier below it says nothing about translations
MOSTLY = 0.5  # share of slices
LARGEST_SCORE = 3.0  # standard deviations of the input check
FEWEST_UNPAIRED = 10  # subjects a side below which distances between distributions hardly mean anything
Verdict = dict[str, str]


def paired_verdict(report: Mapping[str, Any]) -> Verdict:
    """`level` ("good", "unsure", "bad"), `says`, and `rests_on`, of a report on pairs.

    Bad: in some direction the model is not above every baseline, or it hands its source back. Unsure: the
    difference to the best baseline is not clear of 0 (95 % interval), a direction has fewer than six
    subjects, or there is no lookup table to be above.
    """
    cells = report["protocols"]["fixed"]["masked"]["directions"]
    rests = (
        "Rests on PSNR inside the body, protocol fixed version "
        f"{report['protocols']['fixed']['version']}, subject by subject."
    )
    if not cells:
        return {"level": "unsure", "says": "Baselines only: no translator was scored.", "rests_on": rests}
    margins = {d: margin for d in cells if (margin := _margin(report, d)) is not None}
    collapsed = [d for d, its in report["identity_collapse"].items() if its["collapsed"]]
    baselines = [CANDIDATES[name] for name in report["protocols"]["fixed"]["masked"]["baselines"]]
    subjects = [cell["n"] for cell in cells.values()]
    counted = f"{min(subjects)} to {max(subjects)}" if min(subjects) < max(subjects) else f"{max(subjects)}"
    rests += f" Subjects: {counted}. Baselines: {', '.join(baselines) or 'none'}."
    below = [d for d, its in margins.items() if its["mean"] <= 0]
    if below or collapsed:
        parts = [f"not above {margins[d]['baseline']} in {d}" for d in below]
        if len(below) > 2:
            parts = [f"not above the best baseline in {len(below)} of {len(margins)} directions"]
        if collapsed:
            parts.append(f"closer to its source than to its target in {', '.join(collapsed)}")
        return {"level": "bad", "says": f"The model fails: {'; '.join(parts)}.", "rests_on": rests}
    doubts = _doubts(report, margins)
    if not margins:
        says = "There is no baseline to compare with."
    else:
        lowest, highest = (f(its["mean"] for its in margins.values()) for f in (min, max))
        span = f"{lowest:.1f} dB" if highest - lowest < 0.05 else f"{lowest:.1f} to {highest:.1f} dB"
        says = f"Above every baseline in all {len(margins)} directions, by {span} over the best of them"
        says = says.replace("all 1 directions", "the one direction")
        says += f"; not certain: {'; '.join(doubts)}." if doubts else ", with 95 % intervals above 0."
    return {"level": "unsure" if doubts or not margins else "good", "says": says, "rests_on": rests}


def _doubts(report: Mapping[str, Any], margins: Mapping[str, Mapping[str, Any]]) -> list[str]:
    doubts = []
    cells = report["protocols"]["fixed"]["masked"]["directions"]
    fewest = min(cell["n"] for cell in cells.values())
    if fewest < FEWEST_SUBJECTS:
        doubts.append(f"{fewest} subject{'s' * (fewest != 1)} cannot show significance")
    else:
        unclear = [d for d, its in margins.items() if its["interval"] is None or its["interval"][0] <= 0]
        if unclear:
            doubts.append(f"the 95 % interval of the difference holds 0 in {', '.join(unclear)}")
    lookup = report["protocols"]["fixed"]["masked"]["baselines"].get("lookup", {})
    lower = [d for d in cells if _below_in_ssim(cells[d], lookup.get(d))]
    if lower:
        doubts.append(f"SSIM is below the lookup table's in {', '.join(lower)}")
    lacking = [d for d in cells if not lookup.get(d, {"n": 0})["n"]]
    if lacking:
        where = "" if len(lacking) == len(cells) else f" of {', '.join(lacking)}"
        doubts.append(f"no training pairs{where}, so the best intensity map is unknown")
    return doubts


def _below_in_ssim(cell: Mapping[str, Any], lookup: Mapping[str, Any] | None) -> bool:
    return lookup is not None and None not in (cell["ssim"], lookup["ssim"]) and cell["ssim"] < lookup["ssim"]


def _margin(report: Mapping[str, Any], direction: str) -> dict[str, Any] | None:
    """Model less the best baseline, PSNR (fixed, masked): mean and 95 % interval over subjects."""
    table = report["protocols"]["fixed"]["masked"]
    known = {
        name: cells[direction]["psnr"]
        for name, cells in table["baselines"].items()
        if cells[direction]["psnr"] is not None
    }
    if not known or table["directions"][direction]["psnr"] is None:
        return None
    best = max(known, key=lambda name: known[name])
    differences = [
        scores["model"]["fixed"]["masked"]["psnr"] - scores[best]["fixed"]["masked"]["psnr"]
        for entry in report["per_subject"]
        if (scores := entry["directions"].get(direction)) and best in scores
    ]
    cell = spread(differences, "psnr")
    return {"baseline": CANDIDATES[best], "mean": cell["psnr"], "interval": cell["psnr_ci95"]}


def unpaired_verdict(report: Mapping[str, Any]) -> Verdict:
    """As `paired_verdict`, of a report without pairs; never "good": nothing in it can see wrong anatomy.

    Bad: in some direction the source is handed back, intensities lie no closer to the target domain's than
    the untranslated source's, or a classifier that knows the real domains takes most slices for another
    domain.
    """
    directions, judged = report["directions"], report["classifier"].get("directions", {})
    sure = report["classifier"].get("accuracy", 0.0) >= TRUSTED_ACCURACY
    fewest = min(min(c["subjects_fake"], c["subjects_real"]) for c in directions.values())
    rests = (
        "There are no pairs: these numbers compare distributions, and none of them can say that the anatomy "
        "is "
        "right. Rests on intensity histograms, the identity ratio"
        + (" and the classifier" if judged else "")
        + f"; at least {fewest} subject{'s' * (fewest != 1)} a side."
    )
    failed = []
    for direction, cell in directions.items():
        target, copy = direction.split("->")[1], cell["histogram"]["copy"]
        if cell["collapsed"]:
            failed.append(f"{direction} hands its source back (identity ratio {cell['identity_ratio']:.2f})")
        elif copy is not None and cell["histogram"]["distance"] >= copy["distance"]:
            failed.append(f"{direction} has intensities no closer to {target}'s than the untranslated source")
        share = judged.get(direction, {}).get("as_target")
        if sure and share is not None and share < MOSTLY:
            failed.append(f"in {direction} {share:.0%} of the slices are taken for {target}")
    if failed:
        return {"level": "bad", "says": f"The translations fail: {'; '.join(failed)}.", "rests_on": rests}
    parts = []
    closer = [
        1 - cell["histogram"]["distance"] / copy["distance"]
        for cell in directions.values()
        if (copy := cell["histogram"]["copy"]) is not None and copy["distance"] > 0
    ]
    if closer:
        parts.append(
            f"intensities are {_span(closer)} closer to the target domain's than the untranslated source's"
        )
    shares = [cell["as_target"] for cell in judged.values() if cell["as_target"] is not None]
    if shares and sure:
        parts.append(f"{_span(shares)} of the slices are taken for their target")
    says = "; ".join(parts) or "nothing was given to compare the translations with but real scans"
    says = f"Like the target domain, as far as distributions show: {says}." if parts else f"Open: {says}."
    if fewest < FEWEST_UNPAIRED:
        says += f" {fewest} subject{'s' * (fewest != 1)} a side are few."
    return {"level": "unsure", "says": says, "rests_on": rests}


def unpaired_findings(report: Mapping[str, Any]) -> list[str]:
    """What a reader of a report without pairs should not overlook."""
    found = []
    for direction, cell in report["directions"].items():
        texture, copy = cell["texture"]["kid"], cell["texture"]["copy"]
        if texture is not None and copy is not None and copy["kid"] is not None and texture >= copy["kid"]:
            found.append(
                f"{direction}: the texture is farther from real scans than that of the untranslated source "
                f"(KID "
                f"{texture:.3g}, {copy['kid']:.3g}): translations are smoother or noisier than scans."
            )
        if cell["input_score_source"] is not None and cell["input_score_source"] > LARGEST_SCORE:
            found.append(f"{direction}: the sources do not look like the domain the model was trained on.")
        if cell["input_score"] is not None and cell["input_score"] > LARGEST_SCORE:
            found.append(
                f"{direction}: the translations do not look like the training scans of their target."
            )
    return found


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.0%}" if high - low < 0.005 else f"{low:.0%} to {high:.0%}"


def findings(report: Mapping[str, Any]) -> list[str]:
    """What a reader should not overlook, in plain words."""
    table = report["protocols"]["fixed"]["masked"]
    found = []
    if report["subjects"] == 1:
        found.append("One subject: there is no spread, and nothing can be said about others.")
    for direction, cell in table["directions"].items():
        if cell["psnr"] is None:
            found.append(f"{direction}: no subject could be scored.")
            continue
        better = [
            f"{CANDIDATES[name]} ({cells[direction]['psnr']:.2f} dB)"
            for name, cells in table["baselines"].items()
            if cells[direction]["psnr"] is not None and cells[direction]["psnr"] >= cell["psnr"]
        ]
        if better:
            found.append(
                f"{direction}: the model ({cell['psnr']:.2f} dB) is not above {', nor above '.join(better)}."
            )
    for direction, collapse in report["identity_collapse"].items():
        if collapse["collapsed"]:
            found.append(
                f"{direction}: identity collapse, the output is closer to its source than its target."
            )
        elif collapse["subjects_collapsed"]:
            found.append(
                f"{direction}: in {collapse['subjects_collapsed']} subjects the output is closer to its "
                "source than to its target."
            )
    return found


__all__ = ["CANDIDATES", "Verdict", "findings", "paired_verdict", "unpaired_findings", "unpaired_verdict"]
