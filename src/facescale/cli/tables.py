"""Tables that more than one command shows."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from facescale.cli.terminal import escape, show, table

if TYPE_CHECKING:
    from facescale.evaluation.verification import Verification


def show_verifications(answers: "Mapping[str, Verification]") -> None:
    """What each set of pairs says, a row a set."""
    shown = table("pairs", "accuracy", "TAR@FAR 1e-3", "AUC", "EER", "cosine >=", "XNorm")
    for name, answer in answers.items():
        shown.add_row(
            escape(name),
            f"[bold]{100 * answer.accuracy:.2f} %[/] +- {100 * answer.accuracy_std:.2f}",
            f"{100 * answer.tar:.2f} % +- {100 * answer.tar_std:.2f}",
            f"{answer.roc.auc:.4f}",
            f"{100 * answer.roc.eer:.2f} %",
            f"{answer.threshold_cosine:.3f}",
            "" if answer.xnorm is None else f"{answer.xnorm:.2f}",
        )
    show(shown)
