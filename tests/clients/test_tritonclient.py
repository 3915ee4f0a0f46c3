"""Triton's own client for Python, unmodified, against a server process."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from testing.server import Server

pytestmark = pytest.mark.slow


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with connect(server) as client:
        yield client


def connect(server: Server) -> Any:
    from tritonclient.http import InferenceServerClient

    return InferenceServerClient(f"127.0.0.1:{server.port}")


def tensor(name: str, *values: Any, datatype: str = "BYTES", binary: bool = False) -> Any:
    from tritonclient.http import InferInput

    made = InferInput(name, [len(values)], datatype)
    kind = np.object_ if datatype == "BYTES" else np.bool_
    return made.set_data_from_numpy(np.array(values, dtype=kind), binary_data=binary)


def test_what_is_there(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fake")
    assert client.is_model_ready("fake", "1")
    assert not client.is_model_ready("fake", "2")
    assert client.get_server_metadata()["name"] == "gemma-server"
    assert client.get_model_metadata("fake", "1")["versions"] == ["1"]
    [version] = client.get_model_repository_index()
    assert (version["name"], version["version"], version["state"]) == ("fake", "1", "READY")


def test_infer(client: Any) -> None:
    """Without `outputs` the client asks for binary ones, and reads what comes."""
    result = client.infer("fake", [tensor("text_input", "hello", "hé")], request_id="7")
    assert result.as_numpy("text_output").tolist() == ["hello", "hé"]
    assert result.as_numpy("num_output_tokens").tolist() == [6, 4]
    assert result.get_response()["id"] == "7"


def test_options_and_outputs(client: Any) -> None:
    from tritonclient.http import InferRequestedOutput

    wanted = [InferRequestedOutput("finish_reason"), InferRequestedOutput("text_output")]
    text = tensor("text_input", "hello")
    by_parameters = client.infer("fake", [text], outputs=wanted, parameters={"max_tokens": 2})
    options = tensor("sampling_parameters", json.dumps({"max_tokens": "2", "temperature": "0"}))
    flags = (
        tensor("stream", False, datatype="BOOL"),
        tensor("exclude_input_in_output", True, datatype="BOOL"),
    )
    by_tensors = client.infer("fake", [text, options, *flags], model_version="1", outputs=wanted)
    for result in (by_parameters, by_tensors):
        assert result.as_numpy("text_output").tolist() == ["he"]
        assert result.as_numpy("finish_reason").tolist() == ["length"]
        assert result.as_numpy("num_output_tokens") is None


def test_embeddings_are_a_matrix(embedding_server: Server) -> None:
    name = "embeddinggemma-300m"
    with connect(embedding_server) as client:
        texts = tensor("text_input", "a cat", "a dog", "a cat")
        found = client.infer(name, [texts]).as_numpy("embedding")
        [described] = client.get_model_metadata(name)["outputs"]
    assert found.dtype == np.float32
    assert found.shape == (3, described["shape"][1])
    assert np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[1])
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("status", "message", "fields"),
    [
        ("404", "model 'other' not found", {"model_name": "other"}),
        ("404", "model 'fake@2' not found", {"model_version": "2"}),
        ("400", "parameters.temperature: ", {"parameters": {"temperature": -1}}),
        ("400", "unknown field parameters.priority", {"priority": 3}),
        ("415", "binary tensors ", {"binary": True}),
    ],
)
def test_what_is_wrong_is_told(
    client: Any, status: str, message: str, fields: dict[str, Any]
) -> None:
    from tritonclient.utils import InferenceServerException

    text = tensor("text_input", "a", binary=fields.pop("binary", False))
    with pytest.raises(InferenceServerException) as caught:
        client.infer(**{"model_name": "fake", "inputs": [text], **fields})
    assert caught.value.status() == status
    assert caught.value.message().startswith(message)
