"""Verification while a run trains."""

from facescale.acceleration.folding import inference_copy
from facescale.evaluation.embedding import verify_pairs
from facescale.evaluation.verification import Verification
from facescale.training.state import TrainState
from facescale.training.statistics import averaged_statistics
from facescale.training.trackers import Trackers


def evaluate(state: TrainState, trackers: Trackers) -> dict[str, Verification]:
    """Verify on every set, the images shared by all ranks; by name of the set.

    A set that fails is a warning: the run goes on, since its steps are worth more.
    """
    answers: dict[str, Verification] = {}
    if not state.pairs:
        return answers
    with state.autocast():
        averaged = state.kept.averaged(state.world)
        with averaged, averaged_statistics(state.backbone, state.world):
            backbone = inference_copy(state.backbone)
        for pairs in state.pairs:
            try:
                answers[pairs.name] = verify_pairs(
                    backbone,
                    pairs,
                    state.config.evaluation.batch_size,
                    state.device,
                    state.world.rank,
                    state.world.size,
                    state.world.gather_rows,
                )
            except ValueError as error:  # embeddings that are not finite, for example
                trackers.text(f"{pairs.name} could not be verified at step {state.step}: {error}")
                continue
            with state.world.all_or_none():
                trackers.verification(pairs.name, answers[pairs.name])
    return answers
