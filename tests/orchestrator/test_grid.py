"""Configuration files: SEML's language, and what a user reads when something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seml.experiment.config import generate_configs, read_config
from seml.utils import make_hash

from orchestrator import grid

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
ORIGINAL = FIXTURES / "saliency_encoder"


def write(folder: Path, text: str, executable: str = "experiments/studies/andor.py") -> Path:
    path = folder / "sweep.yaml"
    path.write_text(f"seml:\n  executable: {executable}\n  project_root_dir: {ROOT}\n{text}")
    return path


@pytest.mark.parametrize(("file", "count"), [("mixModel.yaml", 96), ("mixModelSmall.yaml", 48)])
def test_the_published_files_expand_to_their_published_numbers(file, count):
    expanded = grid.read(ORIGINAL / file)
    assert len(expanded.documents) == count
    kinds = [d["config"]["model"]["hypers"][0] for d in expanded.documents]
    assert kinds.count("CNN") == kinds.count("Transformer") == count // 2
    assert len({d["config_hash"] for d in expanded.documents}) == count


@pytest.mark.parametrize("file", ["mixModel.yaml", "mixModelSmall.yaml"])
def test_expansion_is_semls_own(file):
    _, _, content = read_config(str(ORIGINAL / file))
    theirs = generate_configs(content)
    assert [d["config_unresolved"] for d in grid.read(ORIGINAL / file).documents] == theirs


def test_the_quickstart_is_24_experiments():
    expanded = grid.read(ROOT / "configs" / "quickstart.yaml")
    assert len(expanded.documents) == 24
    assert expanded.warnings == []


def test_a_document_has_semls_schema_and_no_environment(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "do-not-store-me")
    document = grid.read(ROOT / "configs" / "quickstart.yaml").documents[0]
    assert {"config", "config_hash", "config_unresolved", "seml", "slurm", "git"} <= set(document)
    assert isinstance(document["slurm"], list)
    assert "do-not-store-me" not in repr(document)


def test_hash_is_semls_for_scripts_without_a_schema():
    from seml.experiment.config import config_get_exclude_keys
    from seml.utils import make_hash

    for document in grid.read(ORIGINAL / "mixModelSmall.yaml").documents[:3]:
        excluded = config_get_exclude_keys(document["config_unresolved"])
        assert document["config_hash"] == make_hash(document["config"], excluded)


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    path = write(tmp_path, "fixed: {training.learning_rate: 1e-3}\n")
    assert grid.read(path).documents[0]["config"]["training"]["learning_rate"] == 1e-3


def test_text_in_a_file_cannot_make_objects(tmp_path):
    evil = "{'py/reduce': [{'py/function': 'os.system'}, {'py/tuple': ['touch pwned']}]}"
    path = write(tmp_path, f'fixed: {{number: "{evil}"}}\n', str(FIXTURES / "trivial.py"))
    with pytest.raises(grid.GridError, match="py/reduce"):
        grid.read(path)
    assert not Path("pwned").exists()


def test_tags_that_make_objects_are_refused(tmp_path):
    path = write(tmp_path, "fixed: {seed: !!python/object/apply:os.getpid []}\n")
    with pytest.raises(grid.GridError, match=r"sweep\.yaml, line 4: not valid YAML"):
        grid.read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fixed: {trainig.epochs: 3}", "trainig: unknown key 'trainig'; did you mean 'training'?"),
        (
            "fixed: {training.epoch: 3}",
            "training.epoch: unknown key 'epoch'; did you mean 'epochs'?",
        ),
        ("fixed: {training.epochs: many}", r"training.epochs: .*integer.*got 'many'"),
        ("fixed: {methods: [integrated_gradient]}", "did you mean 'integrated_gradients'"),
        ("fixed: {methods: [{name: integrated_gradients, step: 3}]}", "did you mean 'steps'"),
        ("fixed: {scores: [nip]}", "unknown score 'nip'.*'nib'"),
        ("fixed: {model: andor_cnm}", "unknown model 'andor_cnm'; did you mean 'andor_cnn'"),
        ("fixed: {data.symbols: 1}", "data.symbols: .*greater than or equal to 2"),
        ("fixed: {seed: 0}\ngrid: {seed: {type: choice, options: [1]}}", "duplicate"),
        ("grid: {seed: {options: [1]}}", "seed|type"),
        ("grid: {seed: 3}", "."),
        ("fixed: 3", "fixed: expected a block"),
        ("fixed: {seed: 0}\nfixed: {seed: 1}", r"line 5: key 'fixed' stands twice"),
        ("fixed: {seed: [0}", r"line \d+: not valid YAML"),
        ("slurm: [{experiments_per_jobs: 3}]\nfixed: {seed: 0}", "experiments_per_job"),
        ("", "No parameters defined"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_key(tmp_path, text, message):
    path = write(tmp_path, text + "\n")
    with pytest.raises(grid.GridError, match=message) as raised:
        grid.read(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_a_missing_study_say_so(tmp_path):
    with pytest.raises(grid.GridError, match=r"cannot read .*nowhere\.yaml"):
        grid.read(tmp_path / "nowhere.yaml")
    path = write(tmp_path, "fixed: {seed: 0}\n", "no/such/script.py")
    with pytest.raises(grid.GridError, match=r"no such file.*experiments/studies/andor\.py"):
        grid.read(path)
    path.write_text("fixed: {seed: 0}\n")
    with pytest.raises(grid.GridError, match="`seml:` block"):
        grid.read(path)


def test_equal_configurations_stand_once(tmp_path):
    path = write(
        tmp_path, "fixed: {seed: 0}\ngrid: {dtype: {type: choice, options: [float64, float64]}}\n"
    )
    expanded = grid.read(path)
    assert len(expanded.documents) == 1
    assert "twice" in expanded.warnings[0]


def test_git_urls_lose_their_logins():
    assert grid._without_login("https://me:secret@host/repo.git") == "https://host/repo.git"
    assert grid._without_login("git@host:repo.git") == "git@host:repo.git"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "seed", "seed_2", "over"]), inner)
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["a", "a.b", "b", "seed", "seed_2", "overwrite"]), VALUES),
    st.sampled_from([[], ["seed"], ["__doc__", "db_collection", "overwrite", "seed"]]),
)
def test_the_hash_of_a_configuration_is_semls(config, exclude):
    try:
        theirs = make_hash(config, exclude)
    except TypeError:  # `a` and `a.b` at once: SEML cannot nest them
        return
    assert grid._config_hash(config, exclude) == theirs
