// Package compat holds no code, only tests: the unmodified clients that
// programs use against OpenAI and Ollama, talking to a running gemma-server.
// The clients are dependencies here, so that the client in clients/go has none.
//
// The server runs the fake model, which repeats its prompt:
//
//	gemma-server serve --fake --model-name fake --port 20200
//	GEMMA_COMPAT_URL=http://127.0.0.1:20200 go test -v ./...
//
// The tests of load need a second one, with one slot, a line of one and 50 ms
// for each token, at GEMMA_COMPAT_SLOW_URL; those of loading a third, whose
// model is there once the file GEMMA_COMPAT_LOADING_GATE is.
// tests/server/test_go_clients.py starts all of them. Tests are named Client_Feature: what `go test -v` prints is the
// table of what works with which client.
package compat
