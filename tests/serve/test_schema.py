"""schemathesis sends what the OpenAPI document allows, and what it does not: nothing may end in a server error."""

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

QUICK = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


def test_no_request_makes_the_server_fail(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    seen = set()
    for result in schema.get_all_operations():
        operation = result.ok()

        @QUICK
        @given(case=operation.as_strategy())
        def attempt(case):
            case.call_and_validate(checks=[not_a_server_error])

        attempt()
        seen.add(operation.label)
    assert {"POST /v1/images/edits", "POST /sdapi/v1/img2img", "POST /api/v1/edits", "POST /api/v1/feedback"} <= seen
    assert server.edit()["state"] == "done"
