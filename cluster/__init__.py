"""Facts and plans: settings, frozen state, the error tree. Imports no ray, redis, torch or vllm."""
