"""Wrong input exits with 2: one sentence on stderr that says what is possible, and nothing on disk."""

import re

import pytest

from kvexp.errors import ConfigError
from tests.helpers import compose
from tests.helpers.cheap_compose import set_keys

GROUPS_OF_IMPL = ", ".join(compose.options("impl"))
LAYOUTS = ", ".join(sorted([*compose.options("layout"), "auto"]))
KEYS_OF_WORKLOAD = (
    "batch, block_size, context, extra_tokens, head_size, head_size_v, num_blocks, num_heads, num_layers, "
    "num_query_heads, num_tokens, padding, padding_at, rows, seed, slots, to, tp_from, tp_to"
)
FRACTION = "workload.padding must be a number from 0 to less than 1, not"

BAD = {
    # Options
    "impl=tornch": f"unknown impl 'tornch' (did you mean torch?); choose one of {GROUPS_OF_IMPL}",
    "impl=tornch layout=NHD,HND": GROUPS_OF_IMPL,
    "impl=torch,tornch": GROUPS_OF_IMPL,
    "impl=": GROUPS_OF_IMPL,
    "impl=törch": f"'ö' is not allowed there; impl is one of {GROUPS_OF_IMPL}",
    "x=törch": (
        "cannot read the override 'x=törch': 'ö' is not allowed there; "
        """quotes of its own let a value hold it: 'x="..."'"""
    ),
    "impl=cuda)": f"the ) has no partner before it; impl is one of {GROUPS_OF_IMPL}",
    "impl=cuda,": f"it ends too early; impl is one of {GROUPS_OF_IMPL}",
    "impl=null": GROUPS_OF_IMPL,
    "impl=1": GROUPS_OF_IMPL,
    "impl=[cuda,torch]": GROUPS_OF_IMPL,
    "impl={tile:1}": GROUPS_OF_IMPL,
    "impl=cuda.yaml": GROUPS_OF_IMPL,
    "impl=glob(x*)": "nothing to measure",
    "impl": GROUPS_OF_IMPL,
    "~impl": GROUPS_OF_IMPL,
    "+layout=HND": f"layout is one of {LAYOUTS}",
    "++layout=HND": f"layout is one of {LAYOUTS}",
    "layout=atuo": f"unknown layout 'atuo' (did you mean auto?); choose one of {LAYOUTS}",
    "layout=null": LAYOUTS,
    "op=reshape_and_cach": "(did you mean reshape_and_cache?)",
    "scale=per_haed": "(did you mean per_head?); choose one of per_head, per_tensor",
    "scale=null": "choose one of per_head, per_tensor",
    "~scale": "scale is one of per_head, per_tensor",
    "dtype=fp8_e5m3": "unknown dtype 'fp8_e5m3'; choose one of bfloat16, float,",
    "dtype=float64": "unknown dtype 'float64'; choose one of bfloat16, float,",
    "dtype=flaot16": "unknown dtype 'flaot16' (did you mean float16?); choose one of bfloat16, float,",
    "layout=HDN": f"(did you mean HND?); choose one of {LAYOUTS}; --config-dir FOLDER adds your own",
    "kv_cache_dtype=fp8_e5m3": "choose one of auto, fp8, fp8_ds_mla, fp8_e4m3, fp8_e5m2",
    "connector=nxil": "(did you mean nixl?); choose one of hisparse, lmcache, mooncake, nixl, none, ",
    "connector=null": "choose one of hisparse, lmcache, mooncake, nixl, none, offloading",
    "~connector": "connector is one of hisparse, lmcache, mooncake, nixl, none, offloading",
    "experiment=quikstart": "did you mean quickstart?",
    "experiment=quickstart,seed_flash": "sweep over experiment",
    "experiment=glob(*)": "sweep over experiment",
    "experiment=choice(quickstart,seed_flash)": "sweep over experiment",
    "tracking=local,none": "tracked in one place",
    "tracking=server": "no address",
    # Keys
    "workload.num_hedas=8": f"(did you mean workload.num_heads?); workload has {KEYS_OF_WORKLOAD}",
    "workload.num_hedas=8,9": KEYS_OF_WORKLOAD,
    "+workload.foo=1": KEYS_OF_WORKLOAD,
    "+workload.num_heads=1": "without a +",
    "workload.num_heads.foo=1": "has no keys",
    "workload.num_tokens.foo=1": "type the whole list",
    "~workload.block_size": "workload.block_size is missing",
    "~workload.num_heads": "workload.num_query_heads: Interpolation key 'num_heads' not found",
    "layuot=HND": "did you mean layout?",
    "+layuot=HND": "did you mean layout?",
    "++layuot=HND": "did you mean layout?",
    "layout/foo=HND": "unknown key",
    "+timer.foo=1": "relative_error",
    "+tracking.foo=1": "experiment, tags, uri",
    "mode.foo=1": "mode has no keys",
    "scale.foo=1": "scale has no keys",
    "connector.foo=1": "unknown key connector.foo; connector has layout",
    "connector.layout=HND": "choose an option of connector, not a key of it",
    "+connector.foo=1": "connector has layout",
    "~connector.layout": "'connector.layout' does not exist",
    "workload.padding_at.foo=1": "has no keys",
    "~workload.padding": "workload.padding is missing",
    "~device": "device is missing",
    "hydra.foo=1": "unknown key hydra.foo",
    "dtype.torch_dtype=float64": "choose an option of dtype",
    "impl._target_=os.system": "only YAML files name classes",
    "+hydra.callbacks.x._target_=os.system": "only YAML files name classes",
    "workload.num_heads=8 ++workload.num_heads=9": "typed twice",
    "impl=torch impl=cuda": "typed twice",
    "hydra.mode=RUN impl=torch,cuda": "asks for one curve, and 2 were typed; leave it out",
    "hydra.mode=run": "'hydra.mode=run' is no mode; hydra.mode must be RUN or MULTIRUN",
    "hydra.sweep.subdir=x": "every curve has a folder of its own",
    "hydra.sweep={dir:x,subdir:y} layout=NHD,HND": "every curve has a folder of its own",
    "impl=torch,cuda hydra.sweep.dir=x/${hydra.job.override_dirname}": "in another; a sweep has one folder",
    "hydra.sweep.dir=???": "hydra.sweep.dir",
    "layout=NHD,auto": "the same curve is typed twice (layout=NHD and layout=auto); keep one of them",
    "layout=auto connector=nixl,mooncake": "the same curve is typed twice (",
    "connector=none,nixl": "the same curve is typed twice (connector=none and connector=nixl)",
    "kv_cache_dtype=fp8,fp8_e4m3": "the same curve is typed twice (kv_cache_dtype=fp8 and",
    "timer.max_seconds=1,2": "the same curve is typed twice (timer.max_seconds=1 and timer.max_seconds=2)",
    "layout=NHD,NHD": "the same curve is typed twice (layout=NHD); keep one of them",
    "workload=tiny workload.num_tokens=[1,2],[2,3]": "the same curve is typed twice (workload=tiny",
    "workload.num_heads=2,2": "the same curve is typed twice (workload.num_heads=2)",
    "hydra.sweeper.params.experiment=a": "refused",
    "hydra.sweep=${oc.env:PATH}": "hydra.sweep must have its keys; hydra.sweep.dir=FOLDER says where",
    "hydra.launcher=inf": "hydra.launcher must have its keys",
    "++hydra.sweeper=x": "hydra.sweeper must have its keys",
    "~hydra.callbacks": "hydra.callbacks must have its keys",
    "hydra=5": "hydra must have its keys",
    "hydra/launcher=joblib": "would run each curve by itself, and a sweep is measured as one; choose local",
    "hydra/launcher=local,basic": "choose local",
    "hydra/sweeper=basi": "unknown hydra/sweeper 'basi' (did you mean basic?); choose one of basic, ",
    "hydra.job_logging=[[x]]": "'hydra.job_logging=[[x]]' is refused, since kvexp writes no log",
    "hydra.sweep.dir=. workload.num_heads=0": "must be at least 1, not 0",
    f"hydra.sweep.dir={'x/' * 1500}": "cannot be used (too many folders in one another)",
    # Sweeps without an end
    "workload.seed=range(1,3,0)": "lists no values; write numbers, and a step that is not 0",
    "workload.seed=range(nan,1)": "lists no values",
    "workload.seed=range(1,1e9)": "lists more than 100,000 values; choose fewer",
    "workload.seed=shuffle(range(1,1000000000))": "lists more than 100,000 values",
    "workload.seed=range(0,1000) workload.num_heads=range(1,1000)": "999,000 curves were typed",
    # Types and sizes
    "workload.num_heads=abc": "must be a whole number, not 'abc'",
    'workload.num_heads="8"': "must be a whole number, not '8'",
    "workload.num_heads=???": "workload.num_heads",
    "workload.num_heads=${nope}": "nope",
    "workload.num_heads=0,8": "wrong in 1 of 2 curves",
    "workload.batch=q1 workload.slots=random": "workload.slots is refused beside",
    "workload.batch=q1,q2 workload.num_tokens=1": "workload.num_tokens is refused beside workload.batch=q1",
    "workload.num_heads=interval(1,3)": "range(1,9)",
    "workload.padding=0.1,1.5": "wrong in 1 of 2 curves",
    "resume=nowhere": "resume=nowhere is not the folder of a sweep",
    "resume=5": "resume must be true, false or a sweep's folder, not 5",
    "resume=[a]": "resume must be true, false or a sweep's folder, not ['a']",
    "resume=true,false": "resume has one value for a whole sweep",
    "timeout_s=0": "timeout_s must be a positive number, not 0",
    "timeout_s=nan": "timeout_s must be a positive number",
    "timeout_s=1e12": "timeout_s must be at most 1e+09, not",
    "timeout_s=soon": "timeout_s must be a positive number, not 'soon'",
    "timeout_s=1,2": "timeout_s has one value for a whole sweep",
    "fail_fast=1": "fail_fast must be true or false, not 1",
    "fail_fast=true,false": "fail_fast has one value for a whole sweep",
    "isolation=thread": "isolation must be process or inline, not 'thread'",
    "isolation=process,inline": "isolation has one value for a whole sweep",
    "timeot_s=5": "did you mean timeout_s?",
    "tracking.uri=5": "must be a text",
    "tracking.tags.team=": "tracking.tags.team must be a text that is not empty, not ",
    "tracking.tags.team=null": "tracking.tags.team must be a text that is not empty, not null",
    "tracking.tags.team=[a,b]": 'tracking.tags.team must be one value, not ["a", "b"]',
    "tracking.tags.team=a,b": "tracked in one place",
    "tracking.tags.mlflow.user=me": "tracking.tags.mlflow.user is refused: kvexp or MLflow sets a tag",
    "tracking.tags.kvexp.sweep=x": "tracking.tags.kvexp.sweep is refused: kvexp or MLflow sets a tag of that",
    "tracking.tags.device_name=x": "tracking.tags.device_name is refused",
    "tracking.tags.git_commit=x tracking.tags.team=x": "tracking.tags.git_commit is refused",
    "tracking.tags={a/b:x}": "the name of a tag has letters, digits, _, - and ., 250 at most",
    "tracking.tags=x": "tracking.tags must be names with texts, such as tracking.tags.team=x, not 'x'",
    "tracking.tags=null": "tracking.tags must be names with texts",
    "tracking.tags.team=x +tracking.tags.team=y": "tracking.tags.team is typed twice",
    "~tracking.tags": "tracking.tags is missing",
    "~tracking.tags.team": "'tracking.tags.team' does not exist",
    "+impl.tiles=[1,2]": "must be one value",
    # Syntax and flags
    f"workload.seed={'9' * 4301}": "a number in it has too many digits",
    "a=[1": "cannot read the override 'a=[1': the [ is not closed: a ] is missing",
    "workload.num_tokens=1,64]": "the ] has no partner before it",
    "workload.num_tokens=[1,{64]": "the ] has no partner before it",
    "hydra.sweep.dir='x": "the quote ' is not closed",
    """hydra.sweep.dir='x\\'""": "the quote ' is not closed",
    "impl=torch foo": "'foo' is no override",
    "=3": "names no key",
    "measure": "unknown command 'measure'; the commands are baseline, compare, ",
    "reprot": "unknown command 'reprot' (did you mean report?); the commands are baseline, compare, ",
    "impl=tornch --help": "unknown impl 'tornch' (did you mean torch?)",
    "--foo": "unrecognized arguments: --foo",
    "impl=torch --foo=1 layout=HND": "unrecognized arguments: --foo=1",
    "--config-dir": "expected one argument",
    "--config-dir /nowhere": "'/nowhere' not found",
    "-cp nowhere": "nowhere' exists",
    "-cn nothing": "'nothing'",
    "--cfg everything": "invalid choice",
    "--cfg job impl=torch,cuda": "show one curve",
    "--experimental-rerun x.pickle": "refused",
    "--resolve": "--cfg",
    "sync --experiment=": "--experiment must be a text, not ''",
}


WRONG_VALUES = {
    "workload.num_heads=8.0": "must be a whole number, not 8.0",
    "workload.num_heads=true": "must be a whole number, not true",
    "workload.num_heads=null": "must be a whole number, not null",
    "workload.num_heads=": "must be a whole number, not ''",
    "workload.num_heads=0": "must be at least 1, not 0",
    "workload.block_size=-4": "must be at least 1, not -4",
    "workload.num_tokens=[1,x]": "must be a whole number, not 'x'",
    "workload.num_tokens=[]": "at least one",
    "workload.num_tokens=[4,0]": "must be at least 1, not 0",
    "workload.num_tokens=[8,8]": "names 8 twice",
    "workload.num_tokens=4294967296": "at most 2147483647",
    "workload.num_blocks=9223372036854775807": "int64",
    "workload.slots=sorted": "or a file (FILE.npy or FILE.json), not 'sorted'",
    "workload.slots=[random]": 'or a file (FILE.npy or FILE.json), not ["random"]',
    "workload.slots=null": "workload.slots must be random",
    "workload.slots=batch": "workload.slots must be random",
    "workload.slots=nowhere.npy": "cannot read the slots of nowhere.npy (No such file or directory)",
    "workload.batch=8x1": "workload.batch must be requests such as 8q1s1k_2q2k",
    "workload.batch=[q1]": 'workload.batch must be a text, not ["q1"]',
    "workload.padding=1": f"{FRACTION} 1",
    "workload.padding=half": f"{FRACTION} 'half'",
    "workload.padding_at=front": "workload.padding_at must be end or scattered, not 'front'",
    "workload.rows=strided": "workload.rows must be contiguous, qkv or misaligned, not 'strided'",
    "workload.num_layers=0": "workload.num_layers must be at least 1, not 0",
    "workload.num_query_heads=0": "workload.num_query_heads must be at least 1, not 0",
    "workload.extra_tokens=-1": "workload.extra_tokens must be at least 0, not -1",
    "workload.extra_tokens=2147483648": "workload.extra_tokens must be at most 2147483647",
    "workload.head_size_v=-1": "workload.head_size_v must be at least 0, not -1",
    "workload.seed=-1": "must be at least 0",
    "timer.warmup=0": "must be at least 1",
    "timer.max_seconds=nan": "must be a positive number",
    "timer.relative_error=0": "must be a positive number",
    "timer.max_samples=5": "below timer.min_samples",
    "device=gpu": "auto, cuda, cuda:N or cpu, not 'gpu'",
    "device=cuda:x": "not 'cuda:x'",
    "device=0": "not 0",
}
"""Of keys; workload.num_heads=abc above stands for all of them, and tests/test_column.py has more."""


@pytest.mark.parametrize("word", WRONG_VALUES)
def test_a_value_that_a_key_cannot_have_is_one_sentence(word):
    with pytest.raises(ConfigError, match=re.escape(WRONG_VALUES[word])) as raised:
        set_keys(word)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("line", BAD)
def test_one_sentence_and_nothing_on_disk(typed, line):
    outcome = typed(*line.split())
    assert outcome.code == 2
    assert outcome.err.startswith("kvexp: ")
    assert outcome.err.count("\n") == 1
    assert BAD[line] in outcome.err
    assert outcome.out == ""
    assert list(outcome.jobs) == []
    assert outcome.folders == []


def test_the_traceback_is_there_for_who_asks(typed, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    outcome = typed("impl=tornch")
    assert outcome.code == 2
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("kvexp: unknown impl 'tornch'")
