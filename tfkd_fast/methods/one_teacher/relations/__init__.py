"""Methods that match how the images of a batch relate to each other in the features of one teacher."""
