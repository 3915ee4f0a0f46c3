package examples

import (
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/gemma-server/gemma-server/clients/go/frames"
	"github.com/gemma-server/gemma-server/clients/go/internal/frametest"
)

// The label tells where the pixel (3, 1) is found, whose values are 1, 2 and 3.
func TestClassifyImage(t *testing.T) {
	path := frametest.Start(t, func(p *frametest.Peer, typ frames.Type, body []byte) {
		const plane, pixel = 32 * 32, 32 + 3
		label := fmt.Sprint("größe ", len(body), ", ", body[pixel], body[plane+pixel], body[2*plane+pixel], body[pixel-1])
		p.Send(typ, []byte(label))
	}).Path
	program := filepath.Join(t.TempDir(), "classify-image.exe")
	if out, err := exec.Command("go", "build", "-o", program, "./classify-image").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	small, large := picture(t, image.Rect(0, 0, 32, 32)), picture(t, image.Rect(0, 0, 33, 32))

	out, err := exec.Command(program, "-frames", path, small, small).CombinedOutput()
	line := regexp.QuoteMeta(small) + `: größe 3072, 1 2 3 0 \(\d+\.\d ms\)\n`
	if !regexp.MustCompile("^"+line+line+"$").Match(out) || err != nil {
		t.Errorf("got %q, %v", out, err)
	}
	for want, args := range map[string][]string{
		large + ": a picture of 33x32 pixels, not 32x32\n":  {"-frames", path, large},
		program + ": png: invalid format: not a PNG file\n": {"-frames", path, program},
		"no such file": {"-frames", path + "-none", small},
	} {
		out, err := exec.Command(program, args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%q: got %q, %v", args, out, err)
		}
	}
}

func picture(t *testing.T, bounds image.Rectangle) (name string) {
	t.Helper()
	img := image.NewRGBA(bounds)
	img.Set(3, 1, color.RGBA{R: 1, G: 2, B: 3, A: 255})
	file, err := os.Create(filepath.Join(t.TempDir(), fmt.Sprint(bounds.Dx(), ".png")))
	if err == nil {
		err = png.Encode(file, img)
	}
	if err == nil {
		err = file.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return file.Name()
}
