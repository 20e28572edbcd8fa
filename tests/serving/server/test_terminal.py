"""The client of `llmsys chat`, against the server and against what is none."""

import http.server
import threading

import pytest

from llmsys.serving import Engine, SamplingParams
from llmsys.serving.server.terminal import ChatError, Conversation, printable
from tests.serving.server.running import NAME, serving


def test_a_conversation_goes_back_and_forth(served, model):
    talk = Conversation(served.url, system="Be brief.", temperature=0, max_tokens=8)
    assert talk.model() == NAME
    engine, messages = Engine(model, num_blocks=400, block_size=4), [{"role": "system", "content": "Be brief."}]
    for question in ("Où ?", "When?"):
        messages.append({"role": "user", "content": question})
        expected = engine.generate([messages], [SamplingParams(max_tokens=8)])[0].text
        assert "".join(talk.say(question)) == printable(expected)
        messages.append({"role": "assistant", "content": expected})
        assert talk.messages == messages
    talk.forget()
    assert talk.messages == messages[:1]


def test_an_answer_that_nobody_reads_to_its_end_is_computed_no_further(served):
    talk = Conversation(served.url, temperature=1, ignore_eos=True)  # up to the model's end
    pieces = talk.say("Go on")
    first = next(pieces)
    pieces.close()
    served.wait(lambda: not served.engine.has_unfinished)
    assert len(talk.messages) == 2 and printable(talk.messages[1]["content"]).startswith(first)


def test_what_goes_wrong_is_said_in_a_line(served, model, monkeypatch):
    with pytest.raises(ChatError, match="at most 599 tokens"):
        list(Conversation(served.url).say("a" * 700))
    with pytest.raises(ChatError, match="no server at http://127.0.0.1:9.*llmsys serve"):
        Conversation("http://127.0.0.1:9").model()
    with pytest.raises(ChatError, match="no server at nonsense"):
        Conversation("nonsense").model()
    with monkeypatch.context() as patch:
        patch.setattr(model.head, "forward", lambda x: 1 / 0)
        talk = Conversation(served.url)
        with pytest.raises(ChatError, match="ZeroDivisionError"):
            list(talk.say("a"))
        assert talk.messages == [], "what was not answered is not kept"
    with serving(model, api_key="secret") as running:
        with pytest.raises(ChatError, match="an API key is needed"):
            Conversation(running.url).model()
        assert Conversation(running.url, api_key="secret").model() == NAME


def test_a_server_of_another_kind():
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404, "nothing here")

        def do_POST(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'data: {"choices": [{"delta": {"content": "cut "}}]}\n\n')  # and no more

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        try:
            talk = Conversation(f"http://127.0.0.1:{other.server_port}")
            with pytest.raises(ChatError, match="answered 404 nothing here"):
                talk.model()
            pieces = talk.say("a")
            assert next(pieces) == "cut "
            with pytest.raises(ChatError, match="ended before the answer did"):
                next(pieces)
        finally:
            other.shutdown()


def test_a_text_cannot_take_over_a_terminal():
    assert printable("a\x1b[2Jb\x07\x9b31m\r\n\tc\x7f é😀") == "a[2Jb31m\n\tc é😀"
