import json
from urllib.request import urlopen


def ask(prompt, **parameters):
    body = json.dumps({"instances": [prompt], "parameters": parameters, "stream": True}).encode()
    with urlopen("http://localhost:8080/v1/models/eleutherai-gpt-j-6b:predict", body) as answer:
        for line in answer:
            if line.startswith(b'data: {"instance"'):
                yield json.loads(line[6:])["text"]


for piece in ask("The secret to a happy life is to", temperature=0, max_new_tokens=12):
    print(piece, end="", flush=True)
