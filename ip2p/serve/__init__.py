"""The served editor: one engine, three doors (OpenAI's, AUTOMATIC1111's, our own with the page), history and feedback."""
