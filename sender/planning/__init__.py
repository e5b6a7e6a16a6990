"""A campaign before its first push, and what may be changed of it later: the plan and its checks, writing it down, what
is to be expected of it, and a preview of one push."""
