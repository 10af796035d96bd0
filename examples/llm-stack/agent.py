"""A small agent that needs the whole stack: it answers a question through LiteLLM, caches the answer in Redis, keeps it in
PostgreSQL and sends a trace of it all to Phoenix.

POST /ask {"question": "…"}   GET /history   GET /ready (asks its peers)   GET /alive (asks nobody: liveness)
"""

import hashlib
import os
from contextlib import asynccontextmanager

import httpx
import psycopg
import redis
from fastapi import FastAPI, Response
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from pydantic import BaseModel, Field

PEER_TIMEOUT_SECONDS = 2  # a peer that needs longer counts as away; the probe's own timeout is 5 s
ANSWER_TIMEOUT_SECONDS = 30
CACHE_SECONDS = 60
HISTORY_ROWS_MAX = 20

database = psycopg.conninfo.make_conninfo(
    os.environ["DATABASE_URL"], password=os.environ["POSTGRES_PASSWORD"], connect_timeout=PEER_TIMEOUT_SECONDS
)
cache = redis.Redis.from_url(os.environ["REDIS_URL"], socket_timeout=PEER_TIMEOUT_SECONDS, decode_responses=True)
gateway = httpx.Client(
    base_url=os.environ["LITELLM_URL"],
    headers={"Authorization": f"Bearer {os.environ['LITELLM_MASTER_KEY']}"},
    timeout=ANSWER_TIMEOUT_SECONDS,
)
traces = TracerProvider(resource=Resource.create({"service.name": "agent"}))
traces.add_span_processor(
    BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{os.environ['PHOENIX_URL']}/v1/traces", timeout=PEER_TIMEOUT_SECONDS))
)
tracer = traces.get_tracer("agent")


class Question(BaseModel):
    question: str = Field(min_length=1, max_length=2000)


@asynccontextmanager
async def lifespan(_app):
    with psycopg.connect(database) as connection:
        connection.execute(
            "create table if not exists answers"
            " (id bigserial primary key, question text not null, answer text not null, asked_at timestamptz default now())"
        )
    yield
    traces.shutdown()


app = FastAPI(lifespan=lifespan)


@app.post("/ask")
def ask(body: Question):
    with tracer.start_as_current_span("ask", kind=trace.SpanKind.SERVER) as span:
        key = "answer:" + hashlib.sha256(body.question.encode()).hexdigest()
        answer = cache.get(key)
        span.set_attribute("agent.cache_hit", answer is not None)
        if answer is None:
            with tracer.start_as_current_span("chat demo", kind=trace.SpanKind.CLIENT):
                answer = complete(body.question)
            cache.set(key, answer, ex=CACHE_SECONDS)
        with tracer.start_as_current_span("store answer", kind=trace.SpanKind.CLIENT):
            number = store(body.question, answer)
        trace_id = format(span.get_span_context().trace_id, "032x")
    return {"id": number, "answer": answer, "trace_id": trace_id}


def complete(question):
    messages = [{"role": "user", "content": question}]
    response = gateway.post("/chat/completions", json={"model": "demo", "messages": messages})
    response.raise_for_status()
    return response.json()["choices"][0]["message"]["content"]


def store(question, answer):
    with psycopg.connect(database) as connection:
        row = connection.execute(
            "insert into answers (question, answer) values (%s, %s) returning id", (question, answer)
        ).fetchone()
    return row[0]


@app.get("/history")
def history():
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "select id, question, answer from answers order by id desc limit %s", (HISTORY_ROWS_MAX,)
        ).fetchall()
    return [{"id": number, "question": question, "answer": answer} for number, question, answer in rows]


@app.get("/ready")
def ready(response: Response):
    peers = {"postgres": ask_postgres, "redis": cache.ping, "litellm": ask_litellm}
    errors = {}
    for name, peer in peers.items():
        try:
            peer()
        except Exception as error:  # whatever a peer's client raises, it means: not now
            errors[name] = f"{type(error).__name__}: {error}"
    if errors:
        response.status_code = 503
    return {"status": "unready" if errors else "healthy", "errors": errors}


def ask_postgres():
    with psycopg.connect(database) as connection:
        connection.execute("select 1")


def ask_litellm():
    gateway.get("/health/liveliness", timeout=PEER_TIMEOUT_SECONDS).raise_for_status()


@app.get("/alive")
async def alive():
    return {"status": "alive"}
