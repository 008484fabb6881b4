"""The network in torch: frozen encoder, correlation head, pseudo-masks, checkpoints."""
