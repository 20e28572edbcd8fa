"""The server: an engine behind OpenAI's HTTP API, with a page to talk to it and to watch it.

    llmsys serve                                                    SmolLM2 at http://127.0.0.1:8000
    llmsys chat                                                     talk to it
    OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="-")        any client of OpenAI's

It needs the extra `serving` (`pip install "llmsys[serving]"`): FastAPI, uvicorn and the Prometheus client. It is built
for strangers: what is not supported is refused, who hangs up frees what they held, a full server says so at once. A
workload is replayed against it, or another server, by `llmsys.serving.workload`'s `ServerClient`.

A request whose logits are no numbers fails alone, with an error of its own. Where the model itself raises in a step, no
one can say for whom: the requests of that step fail, those of others go on, and so does the server.

`protocol`  what may be asked           `replies`   what is answered            `errors`    what goes wrong
`gate`      who is let in, and bodies   `limits`    how much, and the door      `service`   a request's way, end to end
`stream`    the answer on the wire      `measured`  for Prometheus              `page`      for people
`app`       which path is whose         `drain`     running it, and stopping    `terminal`  a client
"""
