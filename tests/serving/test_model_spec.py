"""A file of models: what it says, and what is refused with its place."""

import json
import re
import tomllib
from pathlib import Path

import jsonschema_rs
import pytest

from gemma_server.serving.model_spec import BadModelsFile, ModelsFile, ModelSpec, read_models_file

ROOT = Path(__file__).parent.parent.parent


def read(tmp_path: Path, text: str) -> ModelsFile:
    (tmp_path / "models.toml").write_text(text)
    return read_models_file(tmp_path / "models.toml")


def test_paths_are_taken_from_where_the_file_is_and_settings_get_their_types(
    tmp_path: Path,
) -> None:
    found = read(
        tmp_path,
        """
        default = "org/b:1b"
        [models.a]
        base_path = "versions"
        [models."org/b:1b"]
        checkpoint = "/models/b.gguf"
        tokenizer = "tokenizer.model"
        prompt_cache_bytes = "2GB"
        dtype = "int8"
        """,
    )
    assert found.first == "org/b:1b"
    assert found.models["a"] == ModelSpec(base_path=tmp_path / "versions")
    assert found.models["org/b:1b"].checkpoint == Path("/models/b.gguf")
    assert found.models["org/b:1b"].options == {
        "model_tokenizer": tmp_path / "tokenizer.model",
        "prompt_cache_bytes": 2_000_000_000,
        "dtype": "int8",
    }


def test_the_first_model_answers_if_no_other_is_named(tmp_path: Path) -> None:
    assert read(tmp_path, '[models.z]\ncheckpoint="z"\n[models.a]\ncheckpoint="a"').first == "z"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "models: Field required"),
        ("[models]", "models: "),
        ("models = 3", "models: "),
        ("[models.a", "not TOML"),
        ("[models.a]", "models.a: a model has a base_path or a checkpoint"),
        ('[models.a]\nbase_path="a"\ncheckpoint="b"', "one of the two"),
        ('[models.a]\nbase_pth="a"', "models.a.base_pth: Extra inputs"),
        ('[models.a]\nbase_path="a"\nslots=0', "models.a.slots: Input should be greater"),
        ('[models.a]\nbase_path="a"\nslots="many"', "models.a.slots: Input should be a valid"),
        ('[models.a]\nbase_path="a"\ndtype="int7"', "models.a.dtype: Input should be"),
        ('[models.a]\nbase_path="a"\nversions=0', "models.a.versions"),
        ('[models.a]\nbase_path="a"\nversions="some"', "models.a.versions"),
        ('[models.a]\ncheckpoint="a"\nversions=2', "a checkpoint is the only version"),
        ('[models.a]\nbase_path="a"\npolicy="quick"', "models.a.policy"),
        ('[models.a]\nbase_path="a"\nlabels={latest=1}', "'latest' cannot be a label"),
        ('[models.a]\nbase_path="a"\nlabels={stable="1.5"}', "models.a.labels.stable"),
        ('[models.a]\nbase_path="a"\nkeep_alive="a while"', "models.a.keep_alive: not a span"),
        ('[models.a]\nbase_path="a"\nload="later"', "models.a.load"),
        ('[models.a]\nbase_path="a"\nload="request"\npinned=true', "pinned: what stays"),
        ('[models.a]\nbase_path="a"\nkeep_alive=5\npinned=true', "keep_alive: a pinned model"),
        ('[models.a]\nbase_path="a"\nweights={x=1}', "models.a.weights"),
        ('[models.a]\nbase_path="a"\nweights={1=-1}', "models.a.weights"),
        ('[models.a]\nbase_path="a"\nweights={1=0}', "one of them has to be more than 0"),
        ('[models."a@b"]\nbase_path="a"', "'a@b' cannot be a name"),
        ('default="b"\n[models.a]\nbase_path="a"', "default: there is no model 'b'"),
    ],
)
def test_what_cannot_be_is_told_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(BadModelsFile) as refused:
        read(tmp_path, text)
    assert str(refused.value).startswith(f"{tmp_path / 'models.toml'}: ")
    assert problem in str(refused.value)


def test_how_a_model_is_kept(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        [models.a]
        base_path = "a"
        load = "request"
        keep_alive = "1h30m"
        weights = { 3 = 95, 4 = 5 }
        """,
    ).models["a"]
    assert (found.load, found.keeps_s, found.weights) == ("request", 5400, {3: 95, 4: 5})
    assert found.options == {}


def test_the_schema_takes_what_the_server_takes_and_no_more() -> None:
    schema = json.loads((ROOT / "docs" / "models.schema.json").read_text())
    assert schema == ModelsFile.model_json_schema(), (
        "write it anew: python -c 'import json, gemma_server.serving.model_spec as m; "
        "print(json.dumps(m.ModelsFile.model_json_schema(), indent=2))' >docs/models.schema.json"
    )
    checks = jsonschema_rs.validator_for(schema)
    pages = (ROOT / "docs" / "lifecycle.md").read_text()
    [example] = re.findall("```toml\n(.*?)```", pages, re.DOTALL)
    assert checks.is_valid(tomllib.loads(example))
    for bad in ("[models.a]\nslots=3\nsloths=4", "[models.a]\nload=3", "models=3"):
        assert not checks.is_valid(tomllib.loads(bad))


def test_every_field_says_what_it_is() -> None:
    for name, field in ModelSpec.model_fields.items():
        assert field.description, name
