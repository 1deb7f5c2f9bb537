"""One training loop, and what is put into it: language modelling for bases and experts, classification for routers."""
