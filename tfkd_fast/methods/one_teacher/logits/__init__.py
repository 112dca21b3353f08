"""Methods that match the logits of one teacher."""
