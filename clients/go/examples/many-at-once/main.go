// Command many-at-once answers a list of prompts, a few at a time. The server
// runs them side by side; one client serves all goroutines.
//
//	GEMMA_URL=http://127.0.0.1:20200 many-at-once
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"sync"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

// atOnce is how many prompts are under way; more than the server has slots
// would only wait there.
const atOnce = 4

func main() {
	client := gemma.New(gemma.WithBaseURL(cmp.Or(os.Getenv("GEMMA_URL"), gemma.DefaultBaseURL)))
	prompts := []string{"red", "orange", "yellow", "green", "blue", "violet"}
	answers := make([]string, len(prompts))

	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i, prompt := range prompts {
		wg.Add(1)
		slots <- struct{}{}
		go func() {
			defer wg.Done()
			defer func() { <-slots }()
			resp, err := client.Generate(context.Background(), gemma.Request{Prompt: prompt, SamplingSteps: 16})
			if err != nil {
				log.Printf("%s: %v", prompt, err)
				return
			}
			answers[i] = resp.Text
		}()
	}
	wg.Wait()
	for i, prompt := range prompts {
		fmt.Printf("%s: %s\n", prompt, answers[i])
	}
}
