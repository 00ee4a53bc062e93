"""The curves that Hydra has composed, and what is wrong with them as one sweep."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from kvexp.cli import hydra_keys, options, schema
from kvexp.cli.argv import ADDRESS, CommandLine
from kvexp.cli.choices import format_choices
from kvexp.cli.hydra_errors import COMPOSE_ERRORS, explain
from kvexp.errors import ConfigError
from kvexp.experiment import Experiment
from kvexp.host.addresses import mask_secrets
from kvexp.host.terminal import say
from kvexp.results.overrides import get_key, is_reference, quote_value
from kvexp.results.plan import PLAN, format_plan
from kvexp.results.point_identity import CASE, get_values
from kvexp.results.row_file import ROWS
from kvexp.sweep.objective import Objective
from kvexp.sweep.settings import SweepSettings
from kvexp.tracking import TrackingSettings, settings

HOLDS_ROWS = "{} holds the rows of another sweep; choose another hydra.sweep.dir"


Curve = tuple[Experiment, Path, tuple[str, ...]]
"""A curve, its folder and its overrides."""


class Collector:
    """Collect the curves of a sweep's jobs; measure nothing.

    Attributes:
        valid: Each curve that can be measured, with its folder and its overrides.
        invalid: The overrides of every other curve, and what is wrong with it.
        settings: How the sweep is run; more than one where its curves disagree.
        swept: Each swept key, with its values as a text.
        default: Where a sweeper optimises, the curve of what was typed beside the choices that it makes.
    """

    def __init__(self, line: CommandLine, resumes: bool = False) -> None:
        self.line = line
        self.resumes = resumes
        self.valid: list[Curve] = []
        self.invalid: list[tuple[str, str]] = []
        self.settings: set[SweepSettings] = set()
        self.swept: dict[str, str] = {}
        self.default: Curve | None = None
        self._batch_start = 0
        self._here = Path.cwd()
        self._records: list[str] = []
        self._meanings: dict[str, set[str]] = {}

    @property
    def batch(self) -> list[Curve]:
        """The valid curves of the batch that was begun last."""
        return self.valid[self._batch_start :]

    @property
    def objective(self) -> Objective:
        """Return what a sweeper that optimises is told of a curve.

        Raises:
            ConfigError: What was typed is none.
        """
        return Objective.parse(next(iter(self.settings)).objective)

    def begin_batch(self) -> None:
        """Begin a batch; a sweeper that optimises makes several."""
        self._batch_start = len(self.valid)
        self.invalid = []

    def add(self, config: DictConfig) -> bool:
        """Add the job's curve to the valid or to the invalid ones; return whether it is valid.

        Hydra's own path of the job is not read: a ${x} in the current folder's name would be taken for a
        reference.
        """
        record = _format_record(config)
        try:
            curve = self._read(config)
        except ConfigError as error:
            self.invalid.append((" ".join(HydraConfig.get().overrides.task), str(error)))
            return False
        self.valid.append(curve)
        self._records.append(record)
        return True

    def set_default(self, config: DictConfig) -> None:
        """Keep the curve that those of a sweeper which optimises are compared with.

        Raises:
            ConfigError: It is not valid.
        """
        self._default_record = _format_record(config)
        self.default = self._read(config)

    def _read(self, config: DictConfig) -> Curve:
        job = HydraConfig.get()
        overrides = tuple(job.overrides.task)
        folder = Path(os.path.normpath(self._here / str(job.sweep.dir) / str(job.sweep.subdir)))
        if self.line.address:
            OmegaConf.update(config, ADDRESS, self.line.address)
        hydra_keys.check_composed(cast(DictConfig, job))
        return self._build(config, job.runtime, overrides), folder, overrides

    def write_records(self) -> None:
        """Write each curve's configuration and overrides as Hydra would, and its plan; mask all secrets.

        Raises:
            ConfigError: They cannot be written.
        """
        whole = self.valid[0][1].parent / "multirun.yaml"
        texts = {whole: whole.read_text("utf-8")} if whole.is_file() else {}
        (how,) = self.settings
        for curve, config in zip(self.batch, self._records[self._batch_start :], strict=True):
            texts |= _make_records(curve, config, 1 if self.default else how.repeat)
        _write_masked(texts)

    def write_default(self, folder: Path) -> None:
        """Write the records of the default's curve into its folder; see `write_records`.

        Raises:
            ConfigError: They cannot be written.
        """
        assert self.default
        experiment, _, overrides = self.default
        _write_masked(_make_records((experiment, folder, overrides), self._default_record, 1))

    def check(self) -> None:
        """Check that there is something to measure and that all of the batch is valid.

        A sweeper that optimises has begun when its later batches are composed: wrong curves of these are
        said, and curves may be there twice.

        Raises:
            ConfigError: A curve is invalid or there twice, there are none or more than were asked for, its
                folder holds rows already, or the curves disagree about how to run and track the sweep.
        """
        if self.default and self._batch_start:
            for overrides, message in self.invalid:
                say(f"kvexp: {overrides} is not measured: {message}")
        elif self.invalid:
            raise ConfigError(self._describe_invalid())
        if not self.valid:
            raise ConfigError("what was typed matches no option, so there is nothing to measure")
        if self.line.runs_once and len(self.valid) > 1:
            raise ConfigError(
                f"--run or hydra.mode=RUN asks for one curve, and {len(self.valid)} were typed; "
                "leave it out, or choose one value of each key"
            )
        if len(self.settings) > 1:
            raise ConfigError("the curves of a sweep are run and tracked in one way; choose one")
        if not self.default:
            self._check_duplicates()
        self._check_folders()
        self._check_objective()

    def resolve_overrides(self) -> list[str] | None:
        """Return the typed overrides with each reference (`${...}`) replaced by its value.

        None where one has no value of its own, or not the same in all curves.
        """
        found = []
        for text in self.line.overrides:
            if text in self._meanings:
                value, *others = self._meanings[text]
                if others or is_reference(value):
                    return None
                text = f"{text.partition('=')[0]}={value}"
            found.append(text)
        return found

    def _note_references(self, config: DictConfig, choices: Mapping[str, Any]) -> None:
        """Note what each typed reference means in this curve."""
        for text in self.line.overrides:
            if is_reference(text):
                key = get_key(text)
                root = HydraConfig.instance().cfg if key.startswith("hydra.") else config
                value = choices[key] if key in choices else OmegaConf.select(cast(DictConfig, root), key)
                if OmegaConf.is_config(value):
                    value = OmegaConf.to_container(value, resolve=True)
                self._meanings.setdefault(text, set()).add(quote_value(value))

    def _build(self, config: DictConfig, runtime: Any, overrides: tuple[str, ...]) -> Experiment:
        try:
            container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
            self._note_references(config, runtime.choices)
        except COMPOSE_ERRORS as error:
            raise ConfigError(explain(error)) from error
        values, choices = cast(dict[str, Any], container), runtime.choices
        # Unresolved, for the same reason as the job's folder.
        sources = cast(list[dict[str, str]], OmegaConf.to_container(runtime.config_sources, resolve=False))
        folders = [Path(source["path"]) for source in sources if source["schema"] == "file"]
        options.check_experiment(choices.get("experiment"), folders)
        resolved, names, reason = options.resolve_layout(values, choices, folders, os.environ)
        experiment = schema.build_experiment(resolved, names, overrides, reason)
        tracking = self._build_tracking(choices["tracking"], values["tracking"])
        self.settings.add(schema.build_settings(values, tracking, self.resumes))
        return experiment

    def _build_tracking(self, option: str, config: Mapping[str, Any]) -> TrackingSettings:
        uri, experiment, tags = schema.read_tracking(config)
        was_typed = self.line.sets("tracking.uri")
        found = settings(
            kind=option,
            typed_uri=uri if was_typed else None,
            yaml_uri=None if was_typed else uri,
            experiment=experiment,
            environ=os.environ,
            typed_experiment=experiment if self.line.sets("tracking.experiment") else None,
        )
        return replace(found, tags=tags)

    def _describe_invalid(self) -> str:
        overrides, message = self.invalid[0]
        total = len(self.invalid) + len(self.valid)
        if len(self.invalid) == total and len({text for _, text in self.invalid}) == 1:
            return message
        return f"{message} (in the curve {overrides}; wrong in {len(self.invalid)} of {total} curves)"

    def _check_duplicates(self) -> None:
        """Refuse two curves that share a point: every table would show them as one."""
        seen: dict[object, str] = {}
        for experiment, _, overrides in self.valid:
            typed = " ".join(overrides)
            # The workload's name tells curves apart as well, though it is no part of a case's identity.
            points = [get_values(case.columns(), ("workload", *CASE)) for case in experiment.cases()]
            twin = next((seen[point] for point in points if point in seen), None)
            if twin is not None:
                which = f"{twin} and {typed}" if twin != typed else twin
                raise ConfigError(f"the same curve is typed twice ({which}); keep one of them")
            seen.update(dict.fromkeys(points, typed))

    def _check_folders(self) -> None:
        """Refuse a folder that two curves or two sweeps would share, and a sweep in several folders."""
        folders = Counter(folder for _, folder, _ in self.batch)
        homes = sorted({str(folder.parent) for folder in folders})
        if len(homes) > 1:
            raise ConfigError(
                f"hydra.sweep.dir means {homes[0]} in one curve and {homes[1]} in another; "
                "a sweep has one folder"
            )
        for folder, count in folders.items():
            if count > 1:
                raise ConfigError(
                    f"{count} curves would share {folder}; name hydra.job.num in hydra.sweep.subdir"
                )
            if (folder / ROWS).exists():
                raise ConfigError(HOLDS_ROWS.format(folder))

    def _check_objective(self) -> None:
        """Refuse an objective that counts for nothing, or a point that the curves do not have."""
        objective = self.objective
        if not self.default and objective != Objective():
            raise ConfigError(
                f"objective={objective} is for a sweeper that optimises; type hydra/sweeper=optuna beside it"
            )
        for experiment, *_ in self.batch:
            sizes = experiment.workload.num_tokens
            if objective.num_tokens not in (None, *sizes):
                raise ConfigError(
                    f"objective={objective} is no point of the curve: its num_tokens are "
                    f"{', '.join(map(str, sizes))}"
                )


def _format_record(config: DictConfig) -> str:
    """Return the job's configuration, before an address with secrets is put into it, and its choices."""
    return OmegaConf.to_yaml(config) + format_choices(HydraConfig.get().runtime.choices)


def _make_records(curve: Curve, config: str, repeat: int) -> dict[Path, str]:
    experiment, folder, overrides = curve
    return {
        folder / PLAN: format_plan(experiment, repeat),
        folder / ".hydra" / "config.yaml": config,
        folder / ".hydra" / "overrides.yaml": OmegaConf.to_yaml(list(overrides)),
    }


def _write_masked(texts: Mapping[Path, str]) -> None:
    for file, text in texts.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(mask_secrets(text), "utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {file} ({error.strerror}); nothing was measured") from error
