"""What commands share that take a preset and every field of `Config`."""

from dataclasses import fields

from jsonargparse import ArgumentParser, Namespace

from facescale.config import Config, preset_path


def add_config_options(parser: ArgumentParser) -> None:
    """A preset, more YAML over it, and every field of `Config` by its dotted name."""
    parser.add_argument("preset", help="a preset (see `facescale presets`) or a run's config.yaml")
    parser.add_argument("--config", action="config", help="one more YAML file of options")
    parser.add_class_arguments(Config)


def preset_first(command: list[str], preset: str, options: list[str]) -> list[str]:
    """The words of `command` with the preset's YAML before the options, which override it."""
    return [*command, "--config", str(preset_path(preset)), *options]


def read_config(chosen: Namespace) -> Config:
    """The config among a command's options."""
    return Config(**{field.name: chosen[field.name] for field in fields(Config)})
