// Command classify-image sends pictures of 32x32 pixels to a model that answers
// raw frames with a label, and says how long each took.
//
//	classify-image -frames /tmp/model.frames cat.png dog.png
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"image/png"
	"log"
	"os"
	"time"

	"github.com/gemma-server/gemma-server/clients/go/frames"
)

func main() {
	path := flag.String("frames", "", "`path` of the server's frames")
	flag.Parse()
	conn, err := frames.Dial(context.Background(), *path)
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range flag.Args() {
		body, err := pixels(name)
		if err != nil {
			log.Fatal(name, ": ", err)
		}
		begin := time.Now()
		label, err := conn.Raw(context.Background(), body[:])
		if err != nil {
			log.Fatal(name, ": ", err)
		}
		fmt.Printf("%s: %s (%.1f ms)\n", name, label, time.Since(begin).Seconds()*1000)
	}
}

// pixels are all red values, row by row, then the green and the blue ones.
func pixels(name string) (planes [3 * 1024]byte, err error) {
	file, err := os.ReadFile(name)
	if err != nil {
		return planes, err
	}
	img, err := png.Decode(bytes.NewReader(file))
	if err != nil {
		return planes, err
	}
	if size := img.Bounds().Size(); size.X != 32 || size.Y != 32 {
		return planes, fmt.Errorf("a picture of %dx%d pixels, not 32x32", size.X, size.Y)
	}
	for i := range 1024 {
		r, g, b, _ := img.At(i%32, i/32).RGBA()
		planes[i], planes[1024+i], planes[2048+i] = byte(r>>8), byte(g>>8), byte(b>>8)
	}
	return planes, nil
}
