"""Files of llama.cpp: a model or an adapter with its tokenizer in one file, unpacked into a folder and packed again."""
