"""The document at ``/openapi.json`` is true: of every route, in every answer, and under whatever schemathesis thinks
of."""

import json
import subprocess
import sys

import jsonschema
import pytest

from genai_ray.catalog import ServeProfile
from genai_ray.serve.deployment.app import SCHEMAS, list_operations
from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.engine.repository import Repository
from genai_ray.serve.http.routes import describe_api
from tests.serve.contract import document_of
from tests.serve.test_http import GOOD, post, send

FRAMES = {
    "inputs": [{"name": "frames", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [0, 99, 255] * 4}],
    "parameters": {"frames": True, "timeout": 6e7},
    "id": "seven",
}
KNOWN = {"model": "websr-x2-s", "version": "1", "job_id": "0" * 32}


@pytest.fixture(scope="module")
def document(served):
    return document_of(f"http://{served.http}")


def test_schemas_are_schemas_and_every_reference_leads_somewhere(document):
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    words = json.dumps(document).split('"$ref": "')[1:]
    assert {word.partition('"')[0] for word in words} == {
        f"#/components/schemas/{name}" for name in document["components"]["schemas"]
    }
    names = [operation["operationId"] for operations in document["paths"].values() for operation in operations.values()]
    assert len(set(names)) == len(names) > 25


def test_every_route_answers_what_is_written(served, document):
    """Whatever can be asked without more than a path; ``send`` holds every answer against the document."""
    post(served, "websr-x2-s", FRAMES)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            told = send(served, method.upper(), path.format(**KNOWN))[0].status
            is_job = "{job_id}" in path
            is_asking_for_more = method == "post" and ("/v1/" in path or path.endswith("/infer"))
            assert told == (404 if is_job else 400 if is_asking_for_more else 200), (method, path, operation)
            if method == "get":
                assert send(served, "HEAD", path.format(**KNOWN))[0].status == told


def test_wrong_methods_are_told_the_right_ones(served, document):
    for path, operations in document["paths"].items():
        right = {method.upper() for method in operations} | ({"HEAD"} if "get" in operations else set())
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"} - right:
            response, _ = send(served, method, path.format(**KNOWN))
            assert response.status == 405, (method, path)
            assert {word.strip() for word in response.getheader("Allow").split(",")} == right


def test_a_table_with_a_token_says_so(tmp_path):
    def described(**options):
        profile = ServeProfile(name="a", **options)

        async def none():
            raise NotImplementedError

        return describe_api(list_operations(Engine(profile, None, Repository(None, ())), none), SCHEMAS, "1", profile)

    told = described(token_sha256="0" * 64, max_body_bytes=1234)
    closed = {
        path
        for path, operations in told["paths"].items()
        if all("401" in operation["responses"] for operation in operations.values())
    }
    assert set(told["paths"]) - closed == {
        "/",
        "/page.css",
        "/page.js",
        "/parts.js",
        "/compare.js",
        "/cache.js",
        "/sample.webp",
        "/sample.mp4",
        "/v2/health/live",
        "/v2/health/ready",
        "/openapi.json",
    }
    assert all(
        ("security" in operation) == (path in closed)
        for path, operations in told["paths"].items()
        for operation in operations.values()
    )
    assert "1234 bytes" in told["info"]["description"]
    plain = described()
    assert "securitySchemes" not in plain["components"]
    assert "401" not in json.dumps(plain)


def test_what_the_schema_says_of_requests_holds(served, document):
    validator = jsonschema.Draft202012Validator(
        {"$ref": "#/components/schemas/InferRequest", "components": document["components"]}
    )
    outputs = [{"name": name, "parameters": {"binary_data": False}} for name in ("sum", "difference")]
    for content in (
        {"inputs": GOOD},
        {"inputs": GOOD, "outputs": outputs, "id": None},
        {"inputs": GOOD, "parameters": {"timeout": 0, "more": None}},
    ):
        validator.validate(content)
        assert post(served, "add-sub", content)[0] == 200
    for change in (
        {"datatype": "FP31"},
        {"shape": [-1]},
        {"shape": [1] * 33},
        {"name": ""},
        {"data": 7},
        {"parameters": []},
        {"parameters": {"a": []}},
    ):
        content = {"inputs": [GOOD[0] | change, GOOD[1]]}
        assert not validator.is_valid(content)
        assert post(served, "add-sub", content)[0] == 400
    for content in ({}, {"inputs": []}):  # of a model without inputs it would be all
        assert post(served, "add-sub", content)[0] == 400
    for content in (
        {"inputs": GOOD * 513},
        {"inputs": GOOD, "outputs": {}},
        {"inputs": GOOD, "id": 7},
        {"inputs": GOOD, "parameters": {"timeout": -1}},
    ):
        assert not validator.is_valid(content)
        assert post(served, "add-sub", content)[0] == 400


@pytest.mark.slow
def test_schemathesis_finds_nothing(served, tmp_path):
    """Every check it has, but that whatever fits the schema is taken: shapes and elements, or pictures, must fit each
    other as well."""
    (tmp_path / "st.toml").write_text(
        """
        [parameters]
        "path.model" = "websr-x2-s"
        "path.version" = "1"
        "query.model" = "websr-x2-s"

        [[operations]]
        include-operation-id = ["infer", "infer_version", "enhance", "submit_video"]
        checks.positive_data_acceptance.enabled = false

        [[operations]]
        include-operation-id = ["model_ready", "model_ready_version"]
        checks.not_a_server_error.expected-statuses = ["2xx", "4xx", 503]
        """
    )
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "--config-file",
        tmp_path / "st.toml",
        "run",
        f"http://{served.http}/openapi.json",
    ]
    options = [
        "--phases",
        "examples,coverage,fuzzing",
        "--max-examples",
        "30",
        "--seed",
        "1",
        "--warnings",
        "off",
        "--no-color",
    ]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert " passed" in done.stdout
