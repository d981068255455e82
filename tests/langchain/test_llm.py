"""An accelerated language model of text is the plain one, plus the cache.

The matrix: every sort of model x miss and hit x every way to ask it.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import BaseLLM, FakeListLLM, FakeStreamingListLLM
from langchain_core.language_models.llms import LLM
from langchain_core.load import dumpd
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField
from langchain_openai import OpenAI
from pydantic import PrivateAttr

from ragaccel import MultiLevelCache, accelerate, unwrap
from ragaccel.errors import ConfigurationError, RagaccelWarning
from tests.langchain.recorder import Recorder

PROMPT = "a red tree"


class Quiet(LLM):
    """Answers from its settings and what it is asked, and tells what that was."""

    voice: str = "I say"
    error: Exception | None = None
    _asked: list[str] = PrivateAttr(default_factory=list)

    @property
    def _llm_type(self):
        return "quiet"

    def _call(self, prompt, stop=None, run_manager=None, **kwargs):
        self._asked.append(prompt)
        if self.error is not None:
            raise self.error
        return " ".join([self.voice, prompt, *(stop or ()), *map(str, kwargs.values())])


class Streaming(Quiet):
    """Gives its answer word by word, too."""

    def _stream(self, prompt, stop=None, run_manager=None, **kwargs):
        for chunk in chunks(self._call(prompt, stop, run_manager, **kwargs)):
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


class AsyncStreaming(Streaming):
    """Has asynchronous methods of its own."""

    async def _acall(self, prompt, stop=None, run_manager=None, **kwargs):
        await asyncio.sleep(0)
        return self._call(prompt, stop, run_manager, **kwargs)

    async def _astream(self, prompt, stop=None, run_manager=None, **kwargs):
        for chunk in chunks(await self._acall(prompt, stop, run_manager, **kwargs)):
            if run_manager is not None:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


class Batch(BaseLLM):
    """Is sent prompts together, as providers' classes are, and tells of the tokens."""

    n: int = 2
    info: object = None
    _asked: list[list[str]] = PrivateAttr(default_factory=list)

    @property
    def _llm_type(self):
        return "batch"

    def _generate(self, prompts, stop=None, run_manager=None, **kwargs):
        self._asked.append(list(prompts))
        info = {"finish_reason": "stop"} if self.info is None else {"info": self.info}
        return LLMResult(
            generations=[
                [Generation(text=f"{at} {one}", generation_info=info) for at in range(self.n)]
                for one in prompts
            ],
            llm_output={
                "token_usage": {"prompt_tokens": 5 * len(prompts), "completion_tokens": 7},
                "model_name": "batch",
            },
        )


class Within(Batch):
    """Asks its own stream for its answer, as `OpenAI(streaming=True)` does."""

    n: int = 1

    def _generate(self, prompts, stop=None, run_manager=None, **kwargs):
        text = "".join(one.text for one in self._stream(prompts[0], stop, run_manager, **kwargs))
        return LLMResult(generations=[[Generation(text=text)]])

    def _stream(self, prompt, stop=None, run_manager=None, **kwargs):
        self._asked.append([prompt])
        yield from chunks(f"0 {prompt}")


class Around(Batch):
    """Answers asynchronously through its synchronous method."""

    async def _agenerate(self, prompts, stop=None, run_manager=None, **kwargs):
        return await asyncio.to_thread(self._generate, prompts, stop, **kwargs)


class OldStyle(BaseLLM):
    """Was written before run managers were handed to models."""

    @property
    def _llm_type(self):
        return "old"

    def _generate(self, prompts, stop=None):
        return LLMResult(generations=[[Generation(text=f"old {one}")] for one in prompts])


def chunks(text):
    """Return a text as the chunks of a stream."""
    first, *words = text.split(" ")
    made = [GenerationChunk(text=one) for one in (first, *(f" {word}" for word in words))]
    made[-1].generation_info = {"finish_reason": "stop"}
    return made


class Listener(Recorder):
    """Writes down what a language model tells."""

    def on_llm_start(self, serialized, prompts, **details):
        self.keep("start", serialized, prompts, **details)

    def on_llm_new_token(self, token, *, chunk=None, **details):
        self.keep("token", token, unmarked(chunk), **details)

    def on_llm_end(self, response, **details):
        marked = [[unmarked(one) for one in some] for some in response.generations]
        self.keep("end", marked, response.llm_output, **details)

    def on_llm_error(self, error, **details):
        self.keep("error", error, **details)


def unmarked(generation):
    """Return a generation without the mark of a hit."""
    if generation is None:
        return None
    info = dict(generation.generation_info or {})
    info.pop("ragaccel_cached", None)
    return type(generation), generation.text, info


def is_marked(result):
    """Tell of each generation whether it came from the cache."""
    return [
        bool((one.generation_info or {}).get("ragaccel_cached"))
        for some in result.generations
        for one in some
    ]


def later(coroutine):
    return asyncio.run(coroutine)


async def gathered(stream):
    return [one async for one in stream]


WAYS = {
    "invoke": lambda llm, *args, **more: llm.invoke(*args, **more),
    "ainvoke": lambda llm, *args, **more: later(llm.ainvoke(*args, **more)),
    "stream": lambda llm, *args, **more: "".join(llm.stream(*args, **more)),
    "astream": lambda llm, *args, **more: "".join(later(gathered(llm.astream(*args, **more)))),
    "batch": lambda llm, prompt, *args, **more: llm.batch([prompt], *args, **more)[0],
    "abatch": lambda llm, prompt, *args, **more: later(llm.abatch([prompt], *args, **more))[0],
}
MODELS = {
    "quiet": Quiet,
    "streaming": Streaming,
    "async streaming": AsyncStreaming,
    "batch": Batch,
    "within": Within,
    "around": Around,
    "list": lambda: FakeListLLM(responses=["the only answer"]),
    "streaming list": lambda: FakeStreamingListLLM(responses=["the only answer"]),
}


@pytest.fixture(params=WAYS)
def way(request):
    """One way to ask."""
    return WAYS[request.param]


@pytest.fixture(params=MODELS)
def plain(request):
    """A model of a sort."""
    return MODELS[request.param]()


@pytest.fixture(params=["miss", "hit"])
def state(request):
    """Whether the cache knows the prompt."""
    return request.param


@pytest.fixture
def fast(plain, state, way, cache):
    """The model accelerated, whose cache does not, or does, know the prompt."""
    model = accelerate(plain, cache=cache)
    if state == "hit":
        way(model, PROMPT)
    return model


# -- what comes back -------------------------------------------------------------------------------


def test_the_answer_is_equal(plain, fast, state, way, cache):
    """A miss and a hit give what the plain model gives, for one look-up."""
    assert way(fast, PROMPT) == way(plain, PROMPT)
    stats = cache.stats()
    assert stats.misses == 1
    assert sum(stats.hits.values()) == (1 if state == "hit" else 0)
    assert stats.bypasses == {}


def test_twins_share_one_entry(cache):
    """A prompt is sent once, whichever way it is asked first."""
    for first in WAYS:
        model = accelerate(AsyncStreaming(voice=first), cache=cache)
        answers = {WAYS[name](model, PROMPT) for name in (first, *WAYS)}
        assert answers == {f"{first} {PROMPT}"}
        assert len(model._asked) == 1


def test_a_stream_is_replayed_as_it_came(cache):
    """Chunk by chunk, and as one chunk where the answer was given whole."""
    model = accelerate(Streaming(), cache=cache)
    told = list(model.stream(PROMPT))
    assert told == ["I", " say", " a", " red", " tree"]
    assert list(model.stream(PROMPT)) == later(gathered(model.astream(PROMPT))) == told
    model.invoke("blue")
    assert list(model.stream("blue")) == ["I say blue"]


def test_the_last_chunk_says_that_it_was_kept(cache):
    """The others are as they came."""

    class Chunks(Recorder):
        def on_llm_new_token(self, token, *, chunk, **details):
            self.events.append(chunk.generation_info)

    model, heard = accelerate(Streaming(), cache=cache), Chunks()
    for _ in range(2):
        list(model.stream("b", {"callbacks": [heard]}))
    done = {"finish_reason": "stop"}
    assert heard.events == [None, None, done, None, None, {**done, "ragaccel_cached": True}]


def test_a_stream_gives_the_first_of_several_answers(cache):
    """As `invoke` does, of a model that gives more than it was asked for."""

    class Generous(Streaming):
        def _generate(self, prompts, stop=None, run_manager=None, **kwargs):
            whole = super()._generate(prompts, stop, run_manager, **kwargs)
            return LLMResult(
                generations=[[*one, Generation(text="!")] for one in whole.generations]
            )

    model = accelerate(Generous(), cache=cache)
    assert "".join([model.invoke("b"), *model.stream("b")]) == "I say b" * 2


def test_every_generation_comes_back(cache):
    """All candidates with what the provider told of them; the cache marks its own."""
    model = accelerate(Batch(n=3), cache=cache)
    plain = Batch(n=3).generate([PROMPT])
    miss, hit = model.generate([PROMPT]), model.generate([PROMPT])
    assert miss == plain
    assert is_marked(hit) == [True] * 3
    assert list(map(unmarked, hit.generations[0])) == list(map(unmarked, plain.generations[0]))
    assert hit.run is not None


def test_the_output_of_a_call_tells_of_what_was_sent(cache):
    """Tokens that nobody used again are not told again."""
    model = accelerate(Batch(), cache=cache)
    first = model.generate(["a", "b"])
    assert first == Batch().generate(["a", "b"])
    second = model.generate(["a", "c", "b"])
    assert second.llm_output == Batch().generate(["c"]).llm_output
    assert is_marked(second) == [True, True, False, False, True, True]
    assert model.generate(["a", "b"]).llm_output is None
    assert model.generate(["c"]).llm_output is None
    assert model._asked == [["a", "b"], ["c"]]


async def test_methods_that_call_each_other_look_up_once(cache):
    """The model's own calls are part of the one that is served."""
    model = accelerate(Around(), cache=cache)
    for _ in range(2):
        assert await model.abatch(["a", "b"]) == ["0 a", "0 b"]
    stats = cache.stats()
    assert (stats.misses, sum(stats.hits.values())) == (2, 2)


async def test_streams_that_ask_each_other_look_up_once(cache):
    """An asynchronous stream that is made of the synchronous one, as many are."""

    class Through(Streaming):
        async def _astream(self, prompt, stop=None, run_manager=None, **kwargs):
            for chunk in self._stream(prompt, stop, **kwargs):
                yield chunk

    class Back(Quiet):
        def _stream(self, prompt, stop=None, run_manager=None, **kwargs):
            yield from chunks(self._generate([prompt], stop, **kwargs).generations[0][0].text)

    through, back = accelerate(Through(), cache=cache), accelerate(Back(), cache=cache)
    for _ in range(2):
        assert await gathered(through.astream("b")) == ["I", " say", " b"]
        assert list(back.stream("b")) == ["I", " say", " b"]
    assert cache.stats().lookups == 4
    assert len(through._asked) == len(back._asked) == 1


@pytest.mark.parametrize("prompts", [["a"], ["a", "b"], []])
def test_what_was_not_served_is_the_models_own_result(cache, prompts):
    """A result class of the provider's own comes back, with a cache and without."""

    class Told(LLMResult):
        region: str = "eu"

    class Provider(Batch):
        def _generate(self, prompts, stop=None, run_manager=None, **kwargs):
            whole = super()._generate(prompts, stop, run_manager, **kwargs)
            return Told(generations=whole.generations, llm_output=whole.llm_output)

    for options in ({}, {"cache": cache}):
        found = accelerate(Provider(), **options).generate(list(prompts))
        assert type(found) is Told
        assert found == Provider().generate(list(prompts))


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5), max_size=5))
def test_a_prompt_is_sent_once(batches):
    """Whatever is asked together, each prompt gets its answer, and nothing is sent again."""
    with MultiLevelCache.open() as cache:
        model = accelerate(Batch(), cache=cache)
        for prompts in batches:
            assert model.batch(list(prompts)) == Batch().batch(list(prompts))
        sent = sorted(prompt for some in model._asked for prompt in some)
        assert sent == sorted({prompt for prompts in batches for prompt in prompts})


def test_generations_are_the_callers_own(cache):
    """Changing what came back changes nothing for the next caller, nor for another prompt."""
    model = accelerate(Batch(), cache=cache)
    for prompts in (["a"], ["b", "b"], ["a", "b"]):
        for _ in range(3):
            found = model.generate(prompts)
            for prompt, some in zip(prompts, found.generations, strict=True):
                assert [one.text for one in some] == [f"0 {prompt}", f"1 {prompt}"]
                assert some[0].generation_info["finish_reason"] == "stop"
                some[0].text = "changed"
                some[0].generation_info["finish_reason"] = "changed"
                some.clear()


def test_without_a_cache_it_is_the_models_own_answer(plain, way):
    """Only traced, a model gives what it gives."""
    assert way(accelerate(plain), PROMPT) == way(plain, PROMPT)
    assert accelerate(plain).generate([PROMPT, "b"]) == plain.generate([PROMPT, "b"])


# -- what listeners hear ---------------------------------------------------------------------------

CONFIG = {"tags": ["mine"], "metadata": {"user": 7}, "run_name": "my answer"}


@pytest.mark.parametrize("name", ["quiet", "streaming", "async streaming", "list"])
def test_callbacks_are_equal(name, way, state, cache):
    """Handlers hear of the same run, the same tokens and the same answer."""

    def heard(llm):
        listener = Listener()
        way(llm, PROMPT, {"callbacks": [listener], **CONFIG})
        return listener.events

    model = accelerate(MODELS[name](), cache=cache)
    if state == "hit":
        heard(model)
    expected = heard(MODELS[name]())
    assert [event[0] for event in expected][0 :: 10**6] == ["start"]
    assert expected[-1][0] == "end"
    assert heard(model) == expected


def test_callbacks_of_several_prompts_are_equal(state, cache):
    """Each prompt has its own run, whether it was sent or not."""

    def heard(llm):
        listener = Listener()
        llm.batch(["a", "b"], {"callbacks": [listener]})
        return [event for event in listener.events if event[0] != "end" or event[1] == 0]

    model = accelerate(Quiet(), cache=cache)
    if state == "hit":
        model.invoke("b")
    assert heard(model) == heard(Quiet())


@pytest.mark.parametrize("name", ["quiet", "streaming", "async streaming"])
async def test_stream_of_events_is_equal(name, state, cache):
    """`astream_events` tells of the same run and the same chunks."""

    def shown(data):
        return {
            key: unmarked(value) if isinstance(value, Generation) else value
            for key, value in data.items()
            if key != "output"
        }

    async def events(llm):
        told = llm.astream_events(PROMPT, version="v2")
        return [(one["event"], one["name"], shown(one["data"])) async for one in told]

    model = accelerate(MODELS[name](), cache=cache)
    if state == "hit":
        await events(model)
    expected = await events(MODELS[name]())
    assert (len(expected) > 2) == (name != "quiet")
    assert await events(model) == expected


def test_spans_tell_whether_it_was_a_hit(cache, spans):
    """One span of the stage for each call, and none of what was said in it."""
    model = accelerate(Streaming(voice="a secret"), cache=cache)
    model.invoke("another secret")
    list(model.stream("another secret"))
    list(model.stream("a third secret"))
    model.batch(["another secret", "b"])
    told = [one.attributes for one in spans.get_finished_spans() if one.name == "generate"]
    assert [one.get("ragaccel.cache.hit") for one in told] == [False, True, False, None]
    assert (told[-1]["ragaccel.items.count"], told[-1]["ragaccel.items.sent"]) == (2, 1)
    assert "secret" not in "".join(one.to_json() for one in spans.get_finished_spans())


# -- what decides an answer ------------------------------------------------------------------------


def test_what_is_asked_is_told_apart(way, cache):
    """Another prompt, other stop words, another argument or another setting is another answer."""
    model, plain = accelerate(AsyncStreaming(), cache=cache), AsyncStreaming()
    for _ in range(2):
        for prompt, how in (
            (PROMPT, {}),
            ("another", {}),
            (PROMPT, {"size": 1}),
            (PROMPT, {"size": 2}),
        ):
            assert way(model, prompt, **how) == way(plain, prompt, **how)
    assert len(model._asked) == 4


def test_stop_words_are_told_apart(cache):
    """They cut an answer short."""
    model = accelerate(Quiet(), cache=cache)
    for stop in (None, ["a"], ["a", "b"], None, ["a"]):
        assert model.invoke(PROMPT, stop=stop) == Quiet().invoke(PROMPT, stop=stop)
    assert len(model._asked) == 3


def test_settings_are_told_apart(cache):
    """Another model, a changed copy, a setting changed live, a field configured for one call."""
    model = accelerate(Quiet(), cache=cache)
    field = ConfigurableField(id="voice")
    assert accelerate(Quiet(voice="you say"), cache=cache).invoke("a") == "you say a"
    assert model.invoke("a") == "I say a"
    assert model.model_copy(update={"voice": "we say"}).invoke("a") == "we say a"
    chosen = model.configurable_fields(voice=field).with_config(configurable={"voice": "they say"})
    assert chosen.invoke("a") == chosen.invoke("a") == "they say a"
    model.voice = "you say"
    assert model.invoke("a") == "you say a"
    assert cache.stats().misses == 4
    assert sum(cache.stats().hits.values()) == 2


def test_arguments_that_no_key_can_be_made_of(cache):
    """The call goes on without the cache, and is counted."""
    model = accelerate(Streaming(), cache=cache)
    odd = object()
    for _ in range(2):
        assert model.invoke(PROMPT, odd=odd) == Streaming().invoke(PROMPT, odd=odd)
        assert list(model.stream(PROMPT, odd=odd)) == list(Streaming().stream(PROMPT, odd=odd))
        assert model.batch(["a", "b"], odd=odd) == Streaming().batch(["a", "b"], odd=odd)
    assert cache.stats().bypasses == {"key": 6}
    assert cache.stats().lookups == 0


class Sampling(Streaming):
    """Has a temperature."""

    temperature: float = 0.7


def test_samples_are_not_kept(way, cache):
    """Unless the user wants the same one again."""
    with pytest.warns(RagaccelWarning, match="samples"):
        model = accelerate(Sampling(), cache=cache)
    assert way(model, PROMPT) == way(model, PROMPT) == f"I say {PROMPT}"
    assert len(model._asked) == 2
    assert cache.stats().bypasses == {"sampled": 2}
    kept = accelerate(Sampling(), cache=cache, cache_sampled=True)
    assert way(kept, PROMPT) == way(kept, PROMPT)
    assert len(kept._asked) == 1
    settled = accelerate(Sampling(temperature=0), cache=cache)
    assert way(settled, PROMPT) == way(settled, PROMPT)
    assert len(settled._asked) == 1


def test_several_answers_are_no_stream(cache):
    """A stream of a model that is asked for two answers neither serves nor keeps one of them."""

    class Two(Streaming):
        n: int = 2

    model = accelerate(Two(), cache=cache)
    for _ in range(2):
        assert list(model.stream(PROMPT)) == list(Two().stream(PROMPT))
    assert cache.stats().bypasses == {"key": 2}
    assert cache.stats().lookups == 0


def test_an_old_model_is_given_no_more_than_it_takes(state, cache):
    """LangChain leaves out arguments for a model without a run manager."""
    model = accelerate(OldStyle(), cache=cache)
    if state == "hit":
        model.invoke(PROMPT)
    for _ in range(2):
        assert model.invoke(PROMPT) == OldStyle().invoke(PROMPT)
        assert model.invoke(PROMPT, size=1) == OldStyle().invoke(PROMPT, size=1)
    assert cache.stats().misses == 2


def test_tenants_and_accounts(cache):
    """Namespaces part the entries of tenants; the key of an account decides no answer."""
    model = accelerate(Quiet(), cache=cache, namespace="one")
    for namespace in ("one", "two", "one"):
        accelerate(model, cache=cache, namespace=namespace).invoke("a")
    assert cache.stats().misses == 2

    class Local(OpenAI):
        def _generate(self, prompts, stop=None, run_manager=None, **kwargs):
            return LLMResult(generations=[[Generation(text="here")] for _ in prompts])

    for secret in ("sk-one", "sk-two"):
        model = accelerate(Local(api_key=secret, temperature=0), cache=cache, identity="gpt")
        assert model.invoke("a") == "here"
    assert cache.stats().misses == 3


def test_a_model_that_cannot_be_told_apart_needs_an_identity(cache):
    """Two whose settings are hidden could share answers, so the user has to name them."""
    with pytest.raises(ConfigurationError, match="identity"):
        accelerate(Batch(info=object()), cache=cache)


# -- what is not kept ------------------------------------------------------------------------------


def test_an_answer_that_would_not_come_back_equal_is_not_kept(cache):
    """An object of the provider's own is given out, and counted."""
    model = accelerate(Batch(info=object()), cache=cache, identity="odd")
    for _ in range(2):
        found = model.generate(["a", "b"])
        assert found.generations[0][0].generation_info["info"] is model.info
        assert model.generate(["a"]).generations[0][0].generation_info["info"] is model.info
    assert cache.stats().hits == {}
    assert cache.stats().bypasses == {"value": 6}


def test_a_stream_that_would_not_come_back_equal_is_not_kept(cache):
    """It is passed on whole, and counted."""

    class Odd(Streaming):
        def _stream(self, prompt, stop=None, run_manager=None, **kwargs):
            yield GenerationChunk(text="a", generation_info={"odd": object()})
            yield GenerationChunk(text="b")

    model = accelerate(Odd(), cache=cache)
    assert list(model.stream(PROMPT)) == list(model.stream(PROMPT)) == ["a", "b"]
    assert cache.stats().bypasses == {"value": 2}


@pytest.mark.parametrize("prompts", [["a"], ["a", "b"]])
def test_a_wrong_number_of_answers_is_not_kept(cache, prompts):
    """What cannot be told to which prompt it belongs comes back as from the plain model."""

    class Forgetful(Batch):
        def _generate(self, prompts, stop=None, run_manager=None, **kwargs):
            whole = super()._generate(prompts, stop, run_manager, **kwargs)
            return LLMResult(generations=whole.generations[1:], llm_output=whole.llm_output)

    model = accelerate(Forgetful(), cache=cache)
    for _ in range(2):
        assert model.generate(list(prompts)) == Forgetful().generate(list(prompts))
    assert cache.stats().hits == {}


def test_an_empty_stream_is_not_kept(cache):
    """LangChain calls it an error, and the next caller may have more luck."""

    class Empty(Streaming):
        def _stream(self, prompt, stop=None, run_manager=None, **kwargs):
            yield from ()

    model = accelerate(Empty(), cache=cache)
    for _ in range(2):
        with pytest.raises(ValueError, match="No generation chunks"):
            list(model.stream(PROMPT))
    assert cache.stats().bypasses == {}
    assert model.invoke(PROMPT) == f"I say {PROMPT}"


def test_errors_are_the_models_own(way, cache):
    """They reach the caller as they are, and are not kept."""
    error = ConnectionError("the provider is down")
    model = accelerate(AsyncStreaming(error=error), cache=cache, identity="down")
    for _ in range(2):
        with pytest.raises(ConnectionError) as caught:
            way(model, PROMPT)
        assert caught.value is error
    model.error = None
    assert way(model, PROMPT) == f"I say {PROMPT}"


def test_a_stream_that_was_left_or_failed_is_not_kept(cache):
    """Only a stream that came to its end is an answer."""

    class Breaking(Streaming):
        breaks: bool = True

        def _stream(self, prompt, stop=None, run_manager=None, **kwargs):
            for chunk in super()._stream(prompt, stop, run_manager, **kwargs):
                yield chunk
                if self.breaks:
                    raise ConnectionError("the line is dead")

    model = accelerate(Breaking(), cache=cache, identity="breaks")
    with pytest.raises(ConnectionError):
        list(model.stream(PROMPT))
    model.breaks = False
    left = model.stream(PROMPT)
    assert next(left) == "I"
    left.close()
    del left
    gc.collect()
    assert "".join(model.stream(PROMPT)) == f"I say {PROMPT}"
    assert cache.stats().hits == {}
    assert "".join(model.stream(PROMPT)) == f"I say {PROMPT}"
    assert cache.stats().hits == {"memory": 1}


# -- company ---------------------------------------------------------------------------------------


async def test_the_same_prompt_at_the_same_time_is_sent_once(cache):
    """Ten callers wait for one answer."""
    model = accelerate(AsyncStreaming(), cache=cache)
    answers = await asyncio.gather(*(model.ainvoke(PROMPT) for _ in range(10)))
    assert answers == [f"I say {PROMPT}"] * 10
    assert len(model._asked) == 1


def test_threads_share_one_model(cache):
    """Many threads at once get the right answers."""
    model, wrong = accelerate(Streaming(), cache=cache), []

    def ask(at):
        prompts = [f"text {at % 3}", f"text {at % 5}"]
        answers = model.batch(prompts) if at % 2 else ["".join(model.stream(p)) for p in prompts]
        if answers != [f"I say {prompt}" for prompt in prompts]:
            wrong.append(at)

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sum(cache.stats().hits.values()) > 0


def test_langchains_own_cache_above_it(way, cache):
    """A model that has one is not asked for what that knows."""
    model = accelerate(Batch(cache=InMemoryCache()), cache=cache)
    assert way(model, PROMPT) == way(model, PROMPT) == way(Batch(), PROMPT)
    assert cache.stats().lookups == 1


def test_a_chain_around_it(cache):
    """In a chain the model is found and wrapped."""
    chain = PromptTemplate.from_template("a {colour} tree") | Streaming()
    fast = accelerate(chain, cache=cache)
    for _ in range(2):
        assert fast.invoke({"colour": "red"}) == chain.invoke({"colour": "red"})
        assert "".join(fast.stream({"colour": "red"})) == f"I say {PROMPT}"
    assert cache.stats().misses == 1


def test_a_ttl_policy_sees_prompt_and_answer(cache):
    """It is shown the prompt and what was said to it."""
    seen = []

    def policy(prompt, said):
        seen.append((prompt, [one.text for one in said]))
        return 60

    model = accelerate(Streaming(), cache=cache, ttl=policy)
    model.invoke("a")
    model.batch(["b", "c"])
    list(model.stream("d"))
    assert seen[:3] == [(one, [f"I say {one}"]) for one in "abc"]
    assert seen[3] == ("d", ["I", " say", " d"])


def test_tokens_that_were_saved_are_told(cache):
    """What a model read and wrote for one prompt is saved whenever that is served again."""
    model = accelerate(Batch(), cache=cache)
    for _ in range(3):
        model.invoke("a")
    stats = cache.stats()
    assert (stats.saved_tokens_read, stats.saved_tokens_written) == (10, 14)


# -- what it is ------------------------------------------------------------------------------------


def test_it_is_of_the_same_class(plain, cache):
    """Its class, names, dumps and printed form are the plain model's."""
    fast = accelerate(plain, cache=cache)
    assert isinstance(fast, type(plain))
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(type(fast), name) == getattr(type(plain), name)
    assert fast.model_dump() == plain.model_dump()
    assert dumpd(fast) == dumpd(plain)
    assert fast.asdict() == plain.asdict()
    assert repr(fast) == repr(plain)
    assert str(fast) == str(plain)
    assert fast.get_name() == plain.get_name()
    assert fast.model_fields_set == plain.model_fields_set
    assert fast.get_output_jsonschema() == plain.get_output_jsonschema()
    assert unwrap(fast) is plain


def test_langchain_sees_whether_it_streams(plain, cache):
    """A model that does not stream is not asked to, and LangChain's defaults stay its own."""
    fast = type(accelerate(plain, cache=cache))
    for name in ("_stream", "_astream", "_agenerate"):
        default = getattr(BaseLLM, name)
        assert (getattr(fast, name) is default) == (getattr(type(plain), name) is default)


@pytest.mark.parametrize("name", ["quiet", "async streaming", "batch"])
def test_copies_stay_accelerated(name, way, cache):
    """Copies and pickles keep class and options and, where they share the cache, the entries."""
    model = accelerate(MODELS[name](), cache=cache)
    expected = way(model, PROMPT)
    for twin in (
        copy.copy(model), copy.deepcopy(model), model.model_copy(), model.model_copy(deep=True)
    ):  # fmt: skip
        assert type(twin) is type(model)
        assert way(twin, PROMPT) == expected
    assert cache.stats().misses == 1
    back = pickle.loads(pickle.dumps(model))
    assert type(back) is type(model)
    assert way(back, PROMPT) == way(back, PROMPT) == expected
