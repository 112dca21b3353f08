"""Methods that match feature maps of one teacher."""
