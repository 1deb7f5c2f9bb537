"""One training loop and its losses: language modelling, classification, and routing; routers without gradients."""
