"""Tables that more than one command shows."""

from collections.abc import Mapping

from rich.table import Table

from facescale.evaluation.verification import Verification


def verification_table(answers: Mapping[str, Verification]) -> Table:
    """What each set of pairs says, a row a set."""
    table = Table(box=None, padding=(0, 2), header_style="bold")
    table.add_column("pairs", no_wrap=True)
    for title in ("accuracy", "TAR@FAR 1e-3", "AUC", "EER", "cosine >="):
        table.add_column(title, justify="right", no_wrap=True)
    for name, answer in answers.items():
        table.add_row(
            name,
            f"[bold]{100 * answer.accuracy:.2f} %[/] +- {100 * answer.accuracy_std:.2f}",
            f"{100 * answer.tar:.2f} %",
            f"{answer.roc.auc:.4f}",
            f"{100 * answer.roc.eer:.2f} %",
            f"{answer.threshold_cosine:.3f}",
        )
    return table
