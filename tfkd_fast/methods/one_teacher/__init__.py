"""Methods that learn from one teacher."""
