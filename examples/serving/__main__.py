"""`python -m examples.serving layout=NHD,HND requests=982 new_tokens=128 model=qwen3_0_6b`."""

import dataclasses
import inspect
import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.serving.options import LAYOUTS, MODELS, Options, parse
from kvexp.errors import ConfigError, KvexpError

VERSIONS = ("5.17", "5.18")
"""transformers from the first on and before the second: its paged attention is not a public contract."""

COMPARED = ("duration_s", "tokens_per_s", "median_ttft_ms", "median_tpot_ms")


def main(words: Sequence[str]) -> int:
    """Serve what was typed; return the exit code: 1 where serving fails or is wrong, 2 for wrong words."""
    if set(words) & {"-h", "--help"}:
        print(_describe_options())
        return 0
    try:
        options = parse(words)
        _check_transformers()
        serve_rounds(options)
    except ConfigError as error:
        print(f"serving: {error}", file=sys.stderr)
        return 2
    except KvexpError as error:
        print(f"serving: {error}", file=sys.stderr)
        return 1
    return 0


def serve_rounds(options: Options) -> None:
    """Check each layout, serve the rounds that are missing, and print tables and differences."""
    from examples.serving import check, figures, serve

    file = Path(options.out) / "rounds.jsonl"
    held = _read_rounds(file, options)
    model = serve.make_model(options)
    prompts = serve.make_prompts(options, options.requests)
    arrivals = serve.draw_arrivals(options, options.requests)
    few = dataclasses.replace(options, new_tokens=min(options.new_tokens, 16))
    tokens = {}
    for layout in options.layout:
        served = serve.serve(model, few, layout, prompts[: options.check], arrivals, warm_up=False)
        difference = check.check(model, served, layout)
        print(f"{layout}: {len(served)} requests agree with the model's own attention, to {difference:.2g}")
        tokens[layout] = [request.tokens for request in served]
    same = all(own == tokens[options.layout[0]] for own in tokens.values())
    alike = "the same in all layouts" if same else "not the same: rounding decided between near ties"
    print(f"their tokens are {alike}")
    for number in range(options.rounds):
        order = list(options.layout)
        random.Random(options.seed * 1000 + number).shuffle(order)
        for layout in order:
            if layout in held.setdefault(number, {}):
                continue
            served = serve.serve(model, options, layout, prompts, arrivals)
            held[number][layout] = found = figures.compute(served)
            _append(
                file, {"round": number, "layout": layout, "session": _identify(options), "figures": found}
            )
            print(
                f"\nround {number + 1} of {options.rounds}, {layout}\n{figures.format_table(found)}",
                flush=True,
            )
            _track(options, number, layout, found)
    rounds = [held[number] for number in range(options.rounds)]
    first, *others = options.layout
    print()
    for other in others:
        for name in COMPARED:
            print(figures.compare(rounds, first, other, name))
        _predict(options, first, other, rounds)
    print("transformers' scheduler and model with random weights, kvexp's cache: not the speed of vLLM")


def _predict(options: Options, first: str, other: str, rounds: Sequence[Mapping[str, Any]]) -> None:
    if not options.study:
        return
    from examples.serving.prediction import predict

    steps = sorted(one[first]["median_itl_ms"] for one in rounds)
    layers = MODELS[options.model]["num_hidden_layers"]
    print(predict(Path(options.study), first, other, layers, steps[len(steps) // 2]))


def _track(options: Options, number: int, layout: str, found: Mapping[str, float]) -> None:
    """Log a layout's round to MLflow, with its table; say it where that cannot be done."""
    if options.tracking == "none":
        return
    import mlflow
    from mlflow.exceptions import MlflowException

    from examples.serving.figures import format_table

    try:
        mlflow.set_tracking_uri(options.tracking)
        mlflow.set_experiment("kvexp-serving")
        with mlflow.start_run(run_name=f"{options.model} {layout} round {number + 1}"):
            mlflow.log_params({**_identify(options), "layout": layout, "round": number + 1})
            mlflow.log_metrics(dict(found))
            mlflow.log_text(format_table(found), "serving.txt")
    except (MlflowException, OSError) as error:  # of the store; the round is on disk
        print(f"serving: not tracked in {options.tracking}: {error}", file=sys.stderr)


def _identify(options: Options) -> dict[str, Any]:
    """Return what makes rounds comparable: all but how many there are, and where they go."""
    left_out = ("layout", "rounds", "out", "tracking", "study", "check")
    return {name: value for name, value in dataclasses.asdict(options).items() if name not in left_out}


def _read_rounds(file: Path, options: Options) -> dict[int, dict[str, Any]]:
    """Return the figures of earlier commands by round and layout.

    Raises:
        ConfigError: They are of something else.
    """
    held: dict[int, dict[str, Any]] = {}
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    for line in lines:
        row = json.loads(line)
        if row["session"] != _identify(options):
            raise ConfigError(f"{file} holds rounds of other options; choose another out=")
        held.setdefault(row["round"], {})[row["layout"]] = row["figures"]
    return held


def _append(file: Path, row: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")


def _check_transformers() -> None:
    """Check that a version is installed whose paged attention is known.

    Raises:
        ConfigError: None is.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(f"serving needs transformers, pip install 'kvexp[serving]' ({error})") from error
    least, below = ([int(part) for part in each.split(".")] for each in VERSIONS)
    found = [int(part) for part in transformers.__version__.split(".")[:2]]
    if not least <= found < below:
        raise ConfigError(f"serving knows transformers {VERSIONS[0]}, not {transformers.__version__}")


def _describe_options() -> str:
    """Return what can be typed, each key with its meaning and its default."""
    described = inspect.cleandoc(Options.__doc__ or "").partition("Attributes:\n")[2]
    defaults = {**vars(Options()), "layout": ",".join(Options.layout)}
    keys = [
        f"{line} [default {'none' if value == '' else value}]"
        for line, value in zip(described.splitlines(), defaults.values(), strict=True)
    ]
    names = f"Layouts: {', '.join(LAYOUTS)}. Models: {', '.join(MODELS)}."
    return "\n".join([str(__doc__), "", "Keys, each typed as key=value:", *keys, "", names])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
