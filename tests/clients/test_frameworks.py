"""A framework that people get structured answers with, unmodified, against a server process."""

import asyncio
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from testing.server import Server

pytestmark = pytest.mark.slow


class Person(BaseModel):
    """What the answer has to be."""

    name: str
    age: int


async def ask(server: Server, output: Any) -> object:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    address = f"http://127.0.0.1:{server.port}/v1"
    async with httpx.AsyncClient() as client:
        provider = OpenAIProvider(base_url=address, api_key="any", http_client=client)
        agent: Any = Agent(OpenAIChatModel("fake", provider=provider), output_type=output)
        return (await agent.run("Who?")).output


@pytest.mark.filterwarnings("ignore:.*httpx2")
def test_pydantic_ai(server: Server, tools_server: Server) -> None:
    from pydantic_ai import NativeOutput

    assert isinstance(asyncio.run(ask(server, NativeOutput(Person))), Person)
    assert isinstance(asyncio.run(ask(tools_server, Person)), Person)  # as a tool's arguments
