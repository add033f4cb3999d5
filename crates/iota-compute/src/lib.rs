//! Stage compute: explicit forward and backward of Llama-style stages over flat buffers.
