import json
from urllib.request import urlopen


def ask(prompt, **parameters):
    body = json.dumps({"instances": [prompt], "parameters": parameters}).encode()
    with urlopen("http://localhost:8080/v1/models/eleutherai-gpt-j-6b:predict", body) as answer:
        return json.load(answer)["predictions"][0]["generated_text"]


print(ask("The secret to a happy life is to", temperature=0, max_new_tokens=12))
