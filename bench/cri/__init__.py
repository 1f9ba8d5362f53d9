"""A client of the Container Runtime Interface, by which a kubelet has pods made; the tests use it too.

grpc        calls over HTTP/2, by h2
messages    what is sent, by hako's own codec, which is in the clone beside the benchmark
client      the calls
"""
