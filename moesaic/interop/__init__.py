"""Other people's layouts: model families, encoders and PEFT adapters, read and written."""
