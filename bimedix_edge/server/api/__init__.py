"""OpenAI's vocabulary: requests, answers, errors, and the document that describes them."""
