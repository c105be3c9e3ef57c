"""What a run leaves to read: the table and verdict for the terminal, the same as artifacts of the Prefect run."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from segmill.names import for_markdown, visible
from segmill.reports.gate_rows import budget_rows, condition_rows

if TYPE_CHECKING:
    from segmill.metrics.intervals import Interval

LOST_IOU = 0.005  # a class that lost less is not named
MOST_LOST = 5
SPACE = "&emsp;"  # MLflow's tables have no space between columns


def run_scores(metrics: dict[str, Any], facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row per member, for the ensemble and, where one was met, the champion.

    Args:
        metrics: of ``reports/metrics.json``.
        facts: of the gate's verdict.
    """
    classes = metrics["classes"]
    named = [*metrics["members"].items(), ("ensemble", metrics["ensemble"])]
    rows = [
        {
            "name": name,
            "miou": scores["miou"],
            "mdice": scores["mdice"],
            "iou": {label: scores["iou"][label] for label in classes},
        }
        for name, scores in named
    ]
    if facts.get("champion_miou") is not None:
        compared = facts.get("class_names", classes)  # fewer where the champion has another class map
        iou = dict(zip(compared, facts.get("champion_iou", []), strict=False))  # none in verdicts of earlier releases
        rows.append({"name": "champion", "miou": facts["champion_miou"], "mdice": None, "iou": iou})
    return rows


def next_steps(result: dict[str, Any]) -> list[str]:
    """Say what can be done where a version was not promoted: a line for each thing; none after a PASS."""
    if result["verdict"]["decision"] == "PASS":
        return []
    rows = {row["name"]: row["iou"] for row in result["scores"]}
    own, champion = rows["ensemble"], rows.get("champion", {})
    lost = {
        name: before - own[name]
        for name, before in champion.items()
        if before is not None and own.get(name) is not None and before - own[name] >= LOST_IOU
    }
    lines = [
        f"{visible(name)} lost {100 * loss:.1f} IoU points against the champion "
        f"({champion[name]:.4f} to {own[name]:.4f})"
        for name, loss in sorted(lost.items(), key=lambda item: -item[1])[:MOST_LOST]
    ]
    if result["verdict"]["decision"] == "INCONCLUSIVE":
        lines.append("more test groups can decide: `segmill data add` assigns a share of the new groups to test")
    else:
        lines.append(
            "to improve it: more labelled images (`segmill data add`), other settings (`segmill tune MEMBER`), or "
            "labels that are wrong (`segmill audit`)"
        )
    return [*lines, f"to try it all the same: segmill predict IMAGE --version {result['version']}"]


def run_table(scores: list[dict[str, Any]], width: int) -> Table:
    """Return the table of a run on test: mIoU, mean Dice and, where ``width`` columns hold them, each class's IoU.

    Where they don't, the worst class represents all.
    """
    classes = list(scores[0]["iou"])
    names = max(cell_len(row["name"]) for row in scores)
    shown = {name: Text(visible(name)) for name in classes}
    fits = names + 16 + sum(max(7, one.cell_len + 1) for one in shown.values()) <= width
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("on test", no_wrap=True)
    for heading in ("mIoU", "mDice", *(shown.values() if fits else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    if not fits:
        table.add_column("worst IoU", no_wrap=True)
    for row in scores:
        iou = [_figure(row["iou"].get(name)) for name in classes] if fits else [Text(_worst(row["iou"]))]
        style = "bold" if row["name"] == "ensemble" else ""
        table.add_row(Text(visible(row["name"])), _figure(row["miou"]), _figure(row["mdice"]), *iou, style=style)
    return table


def dataset_table(manifest: Path) -> Table:
    """Return the table of a checked set: samples, groups and each class's share of the labelled pixels, per split."""
    from segmill.data.schema.manifest import SPLITS, manifest_info, read_manifest

    rows = read_manifest(manifest)
    classes = manifest_info(rows).class_names
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("split")
    for heading in ("samples", "groups", *(f"{visible(name)} %" for name in classes)):
        table.add_column(Text(heading), justify="right")
    samples = rows.select(["split", "group", "class_pixels"]).to_pylist()
    for split in SPLITS:
        own = [row for row in samples if row["split"] == split]
        pixels = [sum(values) for values in zip(*(row["class_pixels"] for row in own), strict=True)]
        shares = [f"{100 * count / max(1, sum(pixels)):.1f}" for count in pixels]
        table.add_row(split, str(len(own)), str(len({row["group"] for row in own})), *shares)
    return table


def split_sizes(manifest: Path) -> dict[str, dict[str, int]]:
    """Return, per split of a checked set, how many samples and groups it has."""
    from segmill.data.schema.manifest import SPLITS, read_manifest

    rows = read_manifest(manifest).select(["split", "group"]).to_pylist()
    groups = {split: [row["group"] for row in rows if row["split"] == split] for split in SPLITS}
    return {split: {"samples": len(own), "groups": len(set(own))} for split, own in groups.items()}


def show_result(result: dict[str, Any], console: Console) -> None:
    """Print the end of a run: table, verdict with reasons, the path of the report."""
    console.print(run_table(result["scores"], console.width))
    style = {"PASS": "bold green", "FAIL": "bold red"}.get(result["verdict"]["decision"], "bold yellow")
    for warning in result.get("warnings", ()):
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    outcome = escape(result["outcome"])
    console.print(f"[{style}]{result['verdict']['decision']}[/]  {outcome}", highlight=False, soft_wrap=True)
    for reason in result["verdict"]["reasons"]:
        console.print(f"  - {reason}", highlight=False, markup=False, soft_wrap=True)
    for line in next_steps(result):
        console.print(f"  > {line}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"report  {result['report']}", highlight=False, markup=False, soft_wrap=True)


def publish(result: dict[str, Any], picture: Path) -> None:
    """Put the table, the verdict and a picture on the page of the Prefect run this is called in."""
    from prefect.artifacts import create_image_artifact, create_markdown_artifact

    create_markdown_artifact(key="retrain-summary", markdown=markdown(result), description="Scores and verdict")
    if picture.is_file():
        encoded = base64.b64encode(picture.read_bytes()).decode()
        create_image_artifact(
            key="retrain-overlays",
            image_url=f"data:image/png;base64,{encoded}",
            description="Image, truth, prediction and error of test images",
        )


def markdown(result: dict[str, Any]) -> str:
    """Return the verdict, what it rests on, and the table as Markdown: enough to decide by.

    ``result``: of a run, and where there are any ``facts`` of the gate's verdict, the score's ``interval`` in words
    and ``links``, title to address.
    """
    classes, what_next = list(result["scores"][0]["iou"]), next_steps(result)
    lines = [
        f"**{result['verdict']['decision']}**: {result['outcome']}",
        "",
        *(f"- {reason}" for reason in result["verdict"]["reasons"]),
        *(f"- Warning: {for_markdown(warning)}" for warning in result.get("warnings", ())),
        *_gate_markdown(result.get("facts", {})),
        *(["", "What next:", "", *(f"- {_sentence(line)}" for line in what_next)] if what_next else []),
        "",
        f"| on test |{SPACE}mIoU |{SPACE}mean Dice | "
        + " | ".join(f"{SPACE}IoU {for_markdown(name)}" for name in classes)
        + " |",
        "|---|" + "---:|" * (len(classes) + 2),
    ]
    for row in result["scores"]:
        figures = [row["miou"], row["mdice"], *(row["iou"].get(name) for name in classes)]
        lines.append(f"| {for_markdown(row['name'])} | " + " | ".join(map(_figure, figures)) + " |")
    compared = (
        f"compared with version {result['compared_with']}" if result["compared_with"] else "with no earlier champion"
    )
    lines += [
        "",
        *([f"mIoU {result['interval']}.", ""] if result.get("interval") else []),
        f"Data version `{result['data_version']}`, model `{result['model']}` version {result['version']}, {compared}, "
        f"code commit `{result['git_commit']}`.",
        *_links_markdown(result),
    ]
    return "\n".join(lines) + "\n"


def _gate_markdown(facts: dict[str, Any]) -> list[str]:
    """Return the conditions of the verdict as a table, and what it spent and leaves open as a list."""
    conditions, budget = condition_rows(facts), list(budget_rows(facts))
    lines = [f"- {title}: {_sentence(text)}" for title, text in budget]
    if conditions:
        lines += ["", f"| condition of a PASS |{SPACE}outcome |{SPACE}asked |{SPACE}found |", "|---|---|---|---|"]
    for row in conditions:
        cells = (f"{SPACE}{for_markdown(one)}" for one in (row.outcome, row.asked, row.found))
        lines.append(f"| {for_markdown(row.name)} | {' | '.join(cells)} |")
    return ["", *lines] if lines else []


def _sentence(text: str) -> str:
    """Return a text of any length as Markdown: ``for_markdown`` shortens what is long, as names may be."""
    return " ".join(map(for_markdown, text.split()))


def _links_markdown(result: dict[str, Any]) -> list[str]:
    links = [f"[{title}]({address})" for title, address in result.get("links", {}).items()]
    verify = f"`segmill verify {result['model']}/{result['version']}` recomputes what the passport says."
    return ["", " | ".join(links), "", verify] if links else []


def shown_interval(score: Interval) -> str:
    """Say a score with its interval at 95 %, or why it has none."""
    if not score.enough_groups:
        return f"{score.estimate:.4f}; for an interval the test split has too few groups ({score.groups})"
    return f"{score.estimate:.4f}, with 95% confidence between {score.low:.4f} and {score.high:.4f}"


def _worst(iou: dict[str, float | None]) -> str:
    known = {name: value for name, value in iou.items() if value is not None}
    if not known:
        return "-"
    name = min(known, key=lambda label: known[label])
    return f"{known[name]:.4f} {visible(name)}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
