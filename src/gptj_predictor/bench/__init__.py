"""How long responses take, by batch and by length: the sweep, its report and its picture."""
