"""A server with OpenAI's routes that picks the expert of each prompt, and says which one."""
