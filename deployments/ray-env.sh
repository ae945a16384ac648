# The environment of every node of a Ray cluster: `. deployments/ray-env.sh && ray start ...`.
# The images of deployments/Dockerfile have it already. `genai-ray serve` without --address sets it by itself.

# Ray asks everybody for its token: ~/.ray/auth_token, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH. Anybody who has it may run
# code in the cluster. Make one with `ray get-auth-token --generate`, and copy it to every node and client.
export RAY_AUTH_MODE=token

# Requests come in through HAProxy. This program starts it, without its ports for statistics (8404) and metrics (9101),
# which Ray opens to every network.
export RAY_SERVE_ENABLE_HA_PROXY=1
RAY_SERVE_HAPROXY_BINARY_PATH="$(command -v genai-ray-haproxy)" ||
  { echo "genai-ray-haproxy is not on PATH: activate the virtual environment of genai-ray first" >&2; return 1; }
export RAY_SERVE_HAPROXY_BINARY_PATH
export RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S=60
export RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S=1.0
# HAProxy knows within a second or two that a replica ends; Ray would keep each replica for 30 s.
export RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S=2

# HAProxy sends a request of up to 1 MB again if its replica dies. Such buffers cost 1 to 2 ms a request; with a
# RAY_SERVE_HAPROXY_TUNE_BUFSIZE of 65536, larger requests see a closed connection instead.
export RAY_SERVE_HAPROXY_RETRY_ON="conn-failure empty-response junk-response"
export RAY_SERVE_HAPROXY_RETRIES=3
export RAY_SERVE_HAPROXY_TUNE_BUFSIZE=1000000

export RAY_SERVE_GRPC_MAX_MESSAGE_SIZE=268435456
export RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD=0
export RAY_max_direct_call_object_size=1000000
export RAY_task_rpc_inlined_bytes_limit=40000000

# A dead node is noticed after 1.2 s, a silent one after 4.2 s. Choose longer times if nodes can be too busy to answer.
export RAY_health_check_initial_delay_ms=500
export RAY_health_check_period_ms=500
export RAY_health_check_timeout_ms=1000
export RAY_health_check_failure_threshold=3

# Sessions hide the GPUs that they do not use; without this Ray warns of a future change.
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0

# Nothing phones home.
export RAY_USAGE_STATS_ENABLED=0
export ORT_DISABLE_TELEMETRY=1
