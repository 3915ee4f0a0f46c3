package frames_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"sync"
	"time"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/frames"
	"github.com/gemma-server/gemma-server/clients/go/internal/frametest"
)

func Example() {
	srv := frametest.Start(nil, frametest.Repeat) // a stand-in; yours is serve --frames
	defer srv.Close()

	ctx := context.Background()
	conn, err := frames.Dial(ctx, srv.Path)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	resp, err := conn.Generate(ctx, gemma.Request{Prompt: "Hello", SamplingSteps: 4})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.Text)
	// Output: Hell
}

func ExampleDial() {
	_, err := frames.Dial(context.Background(), "/nowhere/gemma.frames")
	var dial *net.OpError
	if errors.As(err, &dial) {
		fmt.Println("is the server running, with --frames?")
	}
	// Output: is the server running, with --frames?
}

// A program outlives its server: it dials anew when a connection is broken.
func ExampleDial_anew() {
	srv := frametest.Start(nil, frametest.Repeat) // a stand-in
	defer srv.Close()
	conn, err := frames.Dial(context.Background(), srv.Path)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := conn.Echo(context.Background(), nil); err != nil {
		log.Fatal(err)
	}
	srv.Disconnect() // as if it had been started anew

	for range 2 {
		resp, err := conn.Generate(context.Background(), gemma.Request{Prompt: "Hello"})
		if errors.Is(err, frames.ErrBroken) {
			fmt.Println("dialling anew")
			conn.Close()
			if conn, err = frames.Dial(context.Background(), srv.Path); err != nil {
				log.Fatal(err)
			}
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(resp.Text)
	}
	conn.Close()
	// Output:
	// dialling anew
	// Hello
}

// A connection for one model of several.
func ExampleWithModel() {
	srv := frametest.Start(nil, func(p *frametest.Peer, _ frames.Type, body []byte) {
		req := frametest.Parse(body)
		p.Send(frames.Finished, frametest.Object{"id": req.ID, "response": "from " + req.Model, "finish_reason": "stop"})
	}) // a stand-in
	defer srv.Close()

	conn, err := frames.Dial(context.Background(), srv.Path, frames.WithModel("chat:stable"))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	for _, own := range []string{"", "chat@4"} {
		resp, err := conn.Generate(context.Background(), gemma.Request{Prompt: "Hello", Model: own})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(resp.Text)
	}
	// Output:
	// from chat:stable
	// from chat@4
}

// Options may depend on what a program is for.
func ExampleOption() {
	srv := frametest.Start(nil, frametest.Repeat) // a stand-in
	defer srv.Close()

	var options []frames.Option
	if name := ""; name != "" { // of a flag, in a program
		options = append(options, frames.WithModel(name))
	}
	conn, err := frames.Dial(context.Background(), srv.Path, options...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	resp, err := conn.Generate(context.Background(), gemma.Request{Prompt: "Hello"})
	fmt.Println(resp.Text, err)
	// Output: Hello <nil>
}

// Many goroutines share one connection, and so do their errors.
func ExampleConn() {
	srv := frametest.Start(nil, frametest.Repeat)
	defer srv.Close()
	conn, err := frames.Dial(context.Background(), srv.Path)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	answers := make([]string, 3)
	var running sync.WaitGroup
	for i := range answers {
		running.Add(1)
		go func() {
			defer running.Done()
			resp, err := conn.Generate(context.Background(), gemma.Request{Prompt: fmt.Sprint("number ", i)})
			if err == nil {
				answers[i] = resp.Text
			}
		}()
	}
	running.Wait()
	fmt.Println(answers)

	_, err = conn.Generate(context.Background(), gemma.Request{Prompt: "x", SamplingSteps: -1})
	var api *gemma.APIError
	if errors.As(err, &api) {
		fmt.Println(api.Status, api.Code, api.Param)
	}
	// Output:
	// [number 0 number 1 number 2]
	// 400 invalid_value sampling_steps
}

func ExampleConn_Echo() {
	conn, closeAll := connect()
	defer closeAll()

	got, err := conn.Echo(context.Background(), []byte{1, 2, 3})
	fmt.Println(got, err)
	// Output: [1 2 3] <nil>
}

// A body longer than the server takes is not even sent.
func ExampleConn_Echo_tooLong() {
	conn, closeAll := connect()
	defer closeAll()

	_, err := conn.Echo(context.Background(), make([]byte, frames.MaxBody+1))
	fmt.Println(errors.Is(err, frames.ErrTooLong), frames.MaxAnswer/frames.MaxBody)
	// Output: true 64
}

func ExampleConn_Raw() {
	conn, closeAll := connect()
	defer closeAll()

	answer, err := conn.Raw(context.Background(), []byte("The capital of France is"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(answer)) // the stand-in repeats the prompt
	// Output: The capital of France is
}

// The server gives up when the context's deadline has passed.
func ExampleConn_Generate() {
	conn, closeAll := connect()
	defer closeAll()

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	resp, err := conn.Generate(ctx, gemma.Request{Prompt: "One, two,", SamplingSteps: 3})
	if errors.Is(err, gemma.ErrDeadline) || errors.Is(err, context.DeadlineExceeded) {
		log.Fatal("too slow")
	} else if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.Text, resp.FinishReason, resp.Usage.CompletionTokens)
	// Output: One length 3
}

func ExampleConn_Stream() {
	conn, closeAll := connect()
	defer closeAll()

	for chunk, err := range conn.Stream(context.Background(), gemma.Request{Prompt: "abcdef"}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(chunk.Text)
		if chunk.Text == "c" {
			break // cancels the request, not what else runs on the connection
		}
	}
	// Output:
	// a
	// b
	// c
}

func ExampleConn_Tokenize() {
	conn, closeAll := connect()
	defer closeAll()

	tokens, err := conn.Tokenize(context.Background(), "ab")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(tokens.Count, "of", tokens.MaxModelLen)
	// Output: 3 of 2048
}

func ExampleTokens() {
	conn, closeAll := connect()
	defer closeAll()

	tokens, err := conn.Tokenize(context.Background(), "ab")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(tokens.IDs)
	// Output: [2 103 104]
}

// How likely is the text as a whole?
func ExampleConn_Score() {
	conn, closeAll := connect()
	defer closeAll()

	score, err := conn.Score(context.Background(), "abc", 0)
	if err != nil {
		log.Fatal(err)
	}
	sum := 0.0
	for _, value := range score.Logprobs.Values[1:] {
		sum += *value
	}
	fmt.Printf("%.3f\n", sum)
	// Output: -2.079
}

func ExampleScore() {
	conn, closeAll := connect()
	defer closeAll()

	score, err := conn.Score(context.Background(), "abc", 0)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(score.Logprobs.Tokens), score.Usage.PromptTokens)
	// Output: 4 4
}

func ExampleLogprobs() {
	conn, closeAll := connect()
	defer closeAll()

	score, err := conn.Score(context.Background(), "ab", 1)
	if err != nil {
		log.Fatal(err)
	}
	l := score.Logprobs
	for i, token := range l.Tokens {
		if l.Values[i] != nil {
			fmt.Printf("%d %s %.2f %.2f\n", l.Offsets[i], token, *l.Values[i], l.Top[i][token])
		}
	}
	// Output:
	// 0 a -0.69 -0.69
	// 1 b -0.69 -0.69
}

func ExampleConn_Ready() {
	conn, closeAll := connect()
	defer closeAll()

	status, err := conn.Ready(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(status.Ready(), status.Model)
	// Output: true fake
}

// Closing ends what runs on the connection, here and on the server.
func ExampleConn_Close() {
	conn, closeAll := connect()
	defer closeAll()

	conn.Close()
	_, err := conn.Echo(context.Background(), nil)
	fmt.Println(errors.Is(err, net.ErrClosed))
	// Output: true
}

// connect dials a stand-in for gemma-server serve --frames.
func connect() (conn *frames.Conn, closeAll func()) {
	srv := frametest.Start(nil, frametest.Repeat)
	conn, err := frames.Dial(context.Background(), srv.Path)
	if err != nil {
		log.Fatal(err)
	}
	return conn, func() { conn.Close(); srv.Close() }
}
