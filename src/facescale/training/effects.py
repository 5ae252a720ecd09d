"""Options that do nothing, or not what they seem to, because another option decides otherwise."""

from facescale.config import Config
from facescale.config.fields import values
from facescale.head.margins import margin_values


def model_pt_note(config: Config, family: str | None) -> list[str]:
    """A line where arcface_torch computes something else from a run's `model.pt`."""
    if not config.checkpoint.model_pt or family == "arcface_torch":
        return []
    return [
        f"checkpoint.model_pt: this backbone is of family {family}, but arcface_torch has its "
        "own BatchNorm eps and pixel scale for these weights; set backbone.family arcface_torch"
    ]


def without_effect(config: Config) -> list[str]:
    """A line for each option that differs from its default and has no effect."""
    schedule, margin, optim = config.optim.schedule, config.head.margin, config.optim
    taken = margin_values(margin.name)
    of_margin = f"head.margin.name is {margin.name}, which takes {', '.join(taken)}"
    of_centres = optim.head_name == "sgd" and config.head.momentum is None
    of_schedule = f"optim.schedule.kind is {schedule.kind}"
    why_not = {
        "optim.schedule.power": schedule.kind != "polynomial" and of_schedule,
        "optim.schedule.boundaries": schedule.kind != "step" and of_schedule,
        "optim.momentum": optim.name != "sgd" and not of_centres and f"optim.name is {optim.name}",
        "head.momentum": optim.head_name != "sgd" and f"optim.head_name is {optim.head_name}",
        **{
            f"head.margin.{name}": name not in taken and of_margin
            for name in ("m1", "m2", "m3", "gradient")
        },
        "data.people": not isinstance(config.data.path, list) and "data.path is one set",
        "train.batch_size": config.train.global_batch_size is not None
        and "train.global_batch_size is given",
    }
    chosen, usual = values(config), values(Config())
    return [
        f"{name} is without effect: {reason}"
        for name, reason in why_not.items()
        if reason and chosen[name] != usual[name]
    ]
