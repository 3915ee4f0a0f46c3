package gemma_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/gemmatest"
)

// A recipe, as a program wants it.
func ExampleInto() {
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(
		gemmatest.Text(`{"dish": "Rösti", "minutes": 30, "needs": ["potatoes", "butter"]}`)))
	defer srv.Close()

	type Recipe struct {
		Dish    string   `json:"dish"`
		Minutes int      `json:"minutes"`
		Needs   []string `json:"needs"`
	}
	client := gemma.New(gemma.WithBaseURL(srv.URL))
	recipe, err := gemma.Into[Recipe](context.Background(), client, gemma.Request{
		Prompt:        "A Swiss dish as JSON, with its ingredients:\n",
		SamplingSteps: 200,
	})
	if errors.Is(err, gemma.ErrUnfinished) {
		log.Fatal("too long a recipe")
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(recipe.Dish, recipe.Minutes, recipe.Needs)
	// Output: Rösti 30 [potatoes butter]
}

// The schema is what the server holds the model to.
func ExampleSchemaFor() {
	type Answer struct {
		Yes bool `json:"yes"`
	}
	schema, err := gemma.SchemaFor[Answer]()
	fmt.Println(string(schema), err)
	// Output: {"$ref":"#/$defs/Answer_0","$defs":{"Answer_0":{"type":"object","properties":{"yes":{"type":"boolean"}},"required":["yes"],"additionalProperties":false}}} <nil>
}

// A text of a request may come from anywhere.
func ExampleRequest_CheckText() {
	req := gemma.Request{Prompt: "Hi", Stop: []string{"\xff"}}
	fmt.Println(req.CheckText())
	// Output: the stop text is not valid UTF-8
}

// Anything that answers prompts will do, here one that counts.
func ExampleGenerator() {
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(gemmatest.Text("7")))
	defer srv.Close()

	asked := &counting{Generator: gemma.New(gemma.WithBaseURL(srv.URL))}
	n, err := gemma.Into[int](context.Background(), asked, gemma.Request{Prompt: "A number: "})
	fmt.Println(n, err, asked.count)
	// Output: 7 <nil> 1
}

type counting struct {
	gemma.Generator
	count int
}

func (c *counting) Generate(ctx context.Context, req gemma.Request) (*gemma.Response, error) {
	c.count++
	return c.Generator.Generate(ctx, req)
}
