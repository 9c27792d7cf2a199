"""What is wrong with a deployment, in words, each with what to do: observers that look, and judges without I/O."""
