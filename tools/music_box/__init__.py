"""The bundled model: a music box that plays simple tunes as it is told."""
